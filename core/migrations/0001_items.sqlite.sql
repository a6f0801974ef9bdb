CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL CHECK (typeof(name) = 'text'),
    description TEXT CHECK (typeof(description) IN ('text', 'null')),
    price_cents INTEGER NOT NULL DEFAULT 0 CHECK (typeof(price_cents) = 'integer' AND price_cents >= 0),
    quantity INTEGER NOT NULL DEFAULT 0 CHECK (typeof(quantity) = 'integer' AND quantity >= 0),
    created_at TEXT NOT NULL CHECK (typeof(created_at) = 'text'),
    updated_at TEXT NOT NULL CHECK (typeof(updated_at) = 'text'),
    version INTEGER NOT NULL DEFAULT 1 CHECK (typeof(version) = 'integer')
);

CREATE INDEX idx_items_created ON items (created_at);
