"""The local stack: real Postgres, real Valkey, the three services, one command. Nobody imports it."""
