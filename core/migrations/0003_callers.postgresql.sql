-- What a write that came with an Idempotency-Key has answered, for whoever sends it again. It is found by the key
-- alone, so that to take one is an INSERT that reads nothing: what reads is in the way of all that write beside it.
CREATE TABLE IF NOT EXISTS idempotency_keys (
    hour bigint NOT NULL,
    caller text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    status bigint NOT NULL,
    headers text COLLATE "C" NOT NULL CHECK (headers::json IS NOT NULL),
    body bytea NOT NULL,
    PRIMARY KEY (caller, key)
);

CREATE INDEX IF NOT EXISTS idx_idempotency_keys_hour ON idempotency_keys (hour);

-- Who may come in when AUTH_MODE is keys; a secret is here as its SHA-256
CREATE TABLE IF NOT EXISTS api_keys (
    id text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    secret_sha256 bytea NOT NULL,
    scopes text COLLATE "C" NOT NULL,
    created_at text COLLATE "C" NOT NULL,
    expires_at text COLLATE "C" CHECK (expires_at ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$'),
    revoked_at text COLLATE "C",
    last_used_on text COLLATE "C"
);
