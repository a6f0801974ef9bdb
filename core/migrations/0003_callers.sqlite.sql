-- What a write that came with an Idempotency-Key has answered, for whoever sends it again. The hour (since 1970) leads
-- the key, so that what comes together and goes together lies together: a commit holds one page of it, and no index.
CREATE TABLE idempotency_keys (
    hour INTEGER NOT NULL CHECK (typeof(hour) = 'integer'),
    caller TEXT NOT NULL CHECK (typeof(caller) = 'text'),
    key TEXT NOT NULL CHECK (typeof(key) = 'text'),
    fingerprint BLOB NOT NULL CHECK (typeof(fingerprint) = 'blob'),
    status INTEGER NOT NULL CHECK (typeof(status) = 'integer'),
    headers TEXT NOT NULL CHECK (typeof(headers) = 'text' AND json_valid(headers)),
    body BLOB NOT NULL CHECK (typeof(body) = 'blob'),
    PRIMARY KEY (hour, caller, key)
) WITHOUT ROWID;

-- Who may come in when AUTH_MODE is keys; a secret is here as its SHA-256
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    secret_sha256 BLOB NOT NULL,
    scopes TEXT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    revoked_at TEXT,
    last_used_on TEXT
);
