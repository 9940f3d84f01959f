-- The tables of a Brevet store that issuing writes to, as its first migration makes them; a test compares.

CREATE TABLE epochs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    server     TEXT    NOT NULL UNIQUE,
    last_batch BLOB CHECK (length(last_batch) = 16)
) STRICT;

CREATE TABLE intents (
    batch BLOB    NOT NULL PRIMARY KEY CHECK (length(batch) = 16),
    epoch INTEGER NOT NULL,
    items BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE issuers (
    id     INTEGER PRIMARY KEY,
    issuer BLOB    NOT NULL UNIQUE CHECK (length(issuer) = 32)
) STRICT;

CREATE TABLE policy_rules (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    identities INTEGER NOT NULL CHECK (identities > 0)
) STRICT;

CREATE TABLE identities (
    id           INTEGER PRIMARY KEY,
    spiffe_id    TEXT    NOT NULL UNIQUE,
    kind         INTEGER NOT NULL,
    profile      TEXT    NOT NULL,
    labels       TEXT    NOT NULL,
    dns_names    TEXT    NOT NULL,
    ip_addresses TEXT    NOT NULL,
    state        INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
    resumes      INTEGER CHECK (resumes IN (1, 2)),
    revision     INTEGER NOT NULL CHECK (revision > 0),
    created_at   INTEGER NOT NULL,
    subject      BLOB CHECK (length(subject) = 33),
    rule         INTEGER REFERENCES policy_rules (id),
    terms        TEXT,
    roles        INTEGER NOT NULL DEFAULT 0 CHECK (roles BETWEEN 0 AND 15),
    recoveries   INTEGER NOT NULL DEFAULT 0,
    CHECK ((state = 3) = (resumes IS NOT NULL)),
    CHECK (roles = 0 OR kind = 3)
) STRICT;
CREATE UNIQUE INDEX identities_by_subject ON identities (subject) WHERE subject IS NOT NULL;

CREATE TABLE keys (
    id             INTEGER PRIMARY KEY,
    rest           BLOB    NOT NULL CHECK (length(rest) = 24),
    identity       INTEGER NOT NULL REFERENCES identities (id),
    compromised_at INTEGER,
    uses           INTEGER NOT NULL CHECK (uses >= 0)
) STRICT;

CREATE TABLE acme_external_keys (
    id         INTEGER PRIMARY KEY,
    public_id  BLOB    NOT NULL UNIQUE CHECK (length(public_id) = 16),
    identity   INTEGER REFERENCES identities (id),
    rule       TEXT,
    sealed     BLOB,
    created_by TEXT    NOT NULL,
    creator    INTEGER REFERENCES identities (id),
    creator_certificate BLOB CHECK (length(creator_certificate) = 52),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked    TEXT,
    CHECK ((identity IS NULL) = (rule IS NOT NULL))
) STRICT;
CREATE INDEX acme_external_keys_by_creator ON acme_external_keys (creator) WHERE creator IS NOT NULL;
CREATE INDEX acme_external_keys_sealed ON acme_external_keys (expires_at) WHERE sealed IS NOT NULL;
CREATE TABLE acme_accounts (
    id           INTEGER PRIMARY KEY,
    public_id    BLOB    NOT NULL UNIQUE CHECK (length(public_id) = 16),
    key          BLOB    NOT NULL,
    thumbprint   BLOB    NOT NULL UNIQUE CHECK (length(thumbprint) = 32),
    status       INTEGER NOT NULL CHECK (status BETWEEN 1 AND 3),
    contact      TEXT,
    external_key INTEGER UNIQUE REFERENCES acme_external_keys (id),
    created_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE certificates (
    id            INTEGER PRIMARY KEY,
    serial        BLOB    NOT NULL UNIQUE CHECK (length(serial) = 20),
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    identity      INTEGER REFERENCES identities (id),
    request       BLOB CHECK (length(request) = 16),
    key           INTEGER,
    successor     INTEGER,
    superseded_by INTEGER,
    profile       TEXT,
    issued_at     INTEGER NOT NULL,
    not_before    INTEGER,
    not_after     INTEGER NOT NULL,
    crl_partition INTEGER NOT NULL,
    state         INTEGER NOT NULL CHECK (state BETWEEN 1 AND 3),
    reason        INTEGER NOT NULL,
    revoked_at    INTEGER,
    invalid_since INTEGER,
    version       INTEGER NOT NULL,
    changed       INTEGER,
    account       INTEGER REFERENCES acme_accounts (id),
    der           BLOB,
    digest        BLOB,
    CHECK ((state = 1) = (revoked_at IS NULL)),
    CHECK ((identity IS NULL) = (der IS NULL)),
    CHECK ((identity IS NULL) = (request IS NULL)),
    CHECK ((identity IS NULL) = (key IS NULL)),
    CHECK ((identity IS NULL) = (digest IS NOT NULL)),
    CHECK (identity IS NOT NULL OR state = 3)
) STRICT;
CREATE UNIQUE INDEX certificates_by_request ON certificates (identity, request);
CREATE INDEX certificates_by_issue ON certificates (issued_at);
CREATE INDEX certificates_by_expiry ON certificates (not_after);
CREATE INDEX certificates_by_identity ON certificates (identity, not_after, account);
CREATE INDEX certificates_by_account ON certificates (account, not_after) WHERE account IS NOT NULL;
CREATE INDEX certificates_changed ON certificates (issuer, crl_partition, changed) WHERE changed IS NOT NULL;

CREATE TABLE log (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    entry BLOB    NOT NULL
) STRICT;

CREATE TABLE chain (
    id    INTEGER PRIMARY KEY,
    value BLOB    NOT NULL CHECK (length(value) = 32)
) STRICT;
