"""The supervisor: spawns, watches and restarts the workers; holds no Kafka or Redis client."""
