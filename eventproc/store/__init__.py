"""Redis: key names, scripts, the connection that runs them, checks, and the embedded server."""
