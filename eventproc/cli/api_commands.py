"""`eventproc-api`: start."""

from __future__ import annotations

from eventproc import logs
from eventproc.cli.options import add_version, make_app, with_settings
from eventproc.ingest.server import serve
from eventproc.settings import Settings

app = make_app("Accept events over HTTP and write them to Kafka.")
add_version(app, "eventproc-api")


@app.command()
@with_settings()
def start(settings: Settings) -> None:
    """Serve in the foreground; TERM or INT answers what is under way and ends."""
    logs.configure(settings.log_level, settings.log_format)
    log = logs.get()
    log.info("starting", topic=settings.kafka_topic)
    serve(settings, lambda port: log.info("ready", host=settings.api_host, port=port))
