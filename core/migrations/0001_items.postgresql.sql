CREATE TABLE IF NOT EXISTS items (
    id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    description text COLLATE "C",
    price_cents bigint NOT NULL DEFAULT 0 CHECK (price_cents >= 0),
    quantity bigint NOT NULL DEFAULT 0 CHECK (quantity >= 0),
    created_at text COLLATE "C" NOT NULL,
    updated_at text COLLATE "C" NOT NULL,
    version bigint NOT NULL DEFAULT 1
);

CREATE INDEX IF NOT EXISTS idx_items_created ON items (created_at, id);
