"""The HTTP ingest API in front of Kafka (CONTRACT section 9)."""
