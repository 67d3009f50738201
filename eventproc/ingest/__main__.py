"""Entry of the API as a supervised child, with an `ApiSpec` on standard input."""

from __future__ import annotations

import json
import sys

from eventproc import logs
from eventproc.errors import EventprocError
from eventproc.ingest.server import serve
from eventproc.settings import Settings
from eventproc.spawn import ApiSpec, die_with_parent, parent_of


def announce(port: int) -> None:
    """Tell the supervisor where it listens."""
    print(json.dumps({"port": port}), flush=True)


def main() -> int:
    """Run the API; the exit code is that of CONTRACT section 7."""
    try:
        spec = ApiSpec.read(sys.stdin.buffer)
        die_with_parent(parent_of(spec.supervisor))
        settings = Settings(**spec.settings)
        logs.configure(settings.log_level, settings.log_format, process="api")
        serve(settings, announce)
    except EventprocError as error:
        print(f"api: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        print(f"api: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
