-- The tables of a Brevet store. Times are milliseconds since 1970, UTC. Keys that other rows name are small integers,
-- so that neither the 32 octets of an issuer nor a SPIFFE ID is repeated in every certificate and index.

-- +goose Up
PRAGMA application_id = 1112692308; -- "BRVT": other programs' databases are left alone

-- The newest process that writes the journal; it fences every earlier one.
CREATE TABLE journal (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL
) STRICT;
INSERT INTO journal (id, epoch) VALUES (1, 0);

-- Announced signatures: a row per batch, gone once the batch is settled.
CREATE TABLE intents (
    id    INTEGER PRIMARY KEY,
    batch BLOB    NOT NULL UNIQUE CHECK (length(batch) = 16),
    epoch INTEGER NOT NULL,
    items BLOB    NOT NULL
) STRICT;

-- The batches settled last, to read back after an ambiguous commit.
CREATE TABLE settled (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    batch BLOB    NOT NULL UNIQUE CHECK (length(batch) = 16)
) STRICT;

CREATE TABLE issuers (
    id     INTEGER PRIMARY KEY,
    issuer BLOB    NOT NULL UNIQUE CHECK (length(issuer) = 32)
) STRICT;

CREATE TABLE ca_certificates (
    id           INTEGER PRIMARY KEY,
    issuer       INTEGER NOT NULL UNIQUE REFERENCES issuers (id), -- the subject and key
    fingerprint  BLOB    NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    key_hash     BLOB    NOT NULL CHECK (length(key_hash) = 32),
    key_label    TEXT    NOT NULL,
    der          BLOB    NOT NULL,
    installed_at INTEGER NOT NULL,
    state        INTEGER NOT NULL CHECK (state BETWEEN 1 AND 3) -- active, retired or removed
) STRICT;
CREATE INDEX ca_certificates_by_key ON ca_certificates (key_hash);

CREATE TABLE identities (
    id           INTEGER PRIMARY KEY,
    spiffe_id    TEXT    NOT NULL UNIQUE,
    kind         INTEGER NOT NULL,
    profile      TEXT    NOT NULL,
    labels       TEXT    NOT NULL, -- JSON, as are the names and addresses
    dns_names    TEXT    NOT NULL,
    ip_addresses TEXT    NOT NULL,
    state        INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
    resumes      INTEGER CHECK (resumes IN (1, 2)), -- the state before a suspension
    generation   INTEGER NOT NULL CHECK (generation > 0),
    created_at   INTEGER NOT NULL,
    CHECK ((state = 3) = (resumes IS NOT NULL))
) STRICT;

-- The labels once more, so that those who have one are found; most identities have none, and no row.
CREATE TABLE identity_labels (
    name     TEXT    NOT NULL,
    value    TEXT    NOT NULL,
    identity INTEGER NOT NULL REFERENCES identities (id),
    PRIMARY KEY (name, value, identity)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id         INTEGER PRIMARY KEY,
    token      BLOB    NOT NULL UNIQUE CHECK (length(token) = 32), -- the hash of the secret
    identity   INTEGER NOT NULL REFERENCES identities (id),
    generation INTEGER NOT NULL, -- of the identity, when the token was made
    profile    TEXT    NOT NULL,
    expires_at INTEGER NOT NULL,
    replaces   INTEGER NOT NULL CHECK (replaces IN (0, 1)),
    created_by TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    request    BLOB CHECK (length(request) = 16),
    key_hash   BLOB CHECK (length(key_hash) = 32),
    spent      INTEGER NOT NULL DEFAULT 0 CHECK (spent IN (0, 1)),
    maker      INTEGER REFERENCES identities (id), -- NULL for a part of the system
    made_with  BLOB CHECK (length(made_with) = 52), -- issuer and serial number of the maker's certificate
    era        INTEGER NOT NULL, -- how many revocations of all its maker's tokens there were before
    revoked    TEXT, -- why it was revoked alone
    CHECK ((request IS NULL) = (key_hash IS NULL)),
    CHECK ((maker IS NULL) = (made_with IS NULL))
) STRICT;
CREATE INDEX tokens_by_creation ON tokens (created_at);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);
CREATE INDEX tokens_by_identity ON tokens (identity);
CREATE INDEX tokens_by_maker ON tokens (maker) WHERE maker IS NOT NULL;

-- Revocations of all tokens that an identity had made: those of their era and of earlier ones. One row revokes any number
-- of tokens, and stays.
CREATE TABLE token_revocations (
    maker INTEGER NOT NULL REFERENCES identities (id),
    era   INTEGER NOT NULL,
    why   TEXT    NOT NULL,
    PRIMARY KEY (maker, era)
) STRICT, WITHOUT ROWID;

-- Calls of operators that had a request ID, with what they did, for their repeats. They leave with the retention.
CREATE TABLE operator_requests (
    id      INTEGER PRIMARY KEY,
    caller  INTEGER NOT NULL REFERENCES identities (id),
    request BLOB    NOT NULL CHECK (length(request) = 16),
    content BLOB    NOT NULL CHECK (length(content) = 32), -- SHA-256 of the operation and its arguments
    made_at INTEGER NOT NULL,
    valid   INTEGER NOT NULL, -- certificates that changed and had not expired, or tokens that were revoked
    expired INTEGER NOT NULL, -- certificates that changed and had expired
    bulk    INTEGER REFERENCES revocation_sets (id), -- that the call created
    token   BLOB CHECK (length(token) = 32), -- that the call created
    UNIQUE (caller, request)
) STRICT;
CREATE INDEX operator_requests_by_time ON operator_requests (made_at);

-- Public keys that were certified, each for one identity. The first 8 octets of the SHA-256 of the
-- SubjectPublicKeyInfo are the row's number, as SQLite's signed integer, so that a key is found without an index; two
-- keys that begin alike cannot both be certified. A key that no certificate names leaves; a compromised one stays.
CREATE TABLE keys (
    id             INTEGER PRIMARY KEY,
    rest           BLOB    NOT NULL CHECK (length(rest) = 24),
    identity       INTEGER NOT NULL REFERENCES identities (id),
    compromised_at INTEGER,
    named          INTEGER NOT NULL CHECK (named >= 0) -- how often certificates name it, as their key or as the next one
) STRICT;

-- Every serial number that an issuing key has signed or was about to. One without an identity was never released: it
-- has a digest in place of the certificate, and is revoked. Its key and successor are rows of keys, which count that:
-- for a foreign key SQLite would read every certificate whenever a key leaves. Changed is the id of the log entry in which
-- its status last changed after it was issued, or in which it was given up; NULL where it was never anything but good.
CREATE TABLE certificates (
    id            INTEGER PRIMARY KEY,
    serial        BLOB    NOT NULL UNIQUE CHECK (length(serial) = 20),
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    identity      INTEGER REFERENCES identities (id),
    request       BLOB CHECK (length(request) = 16),
    key           INTEGER,
    successor     INTEGER, -- the key that it was renewed with
    superseded_by INTEGER, -- the certificate that renewed it, where it was revoked for that
    profile       TEXT,
    issued_at     INTEGER NOT NULL,
    not_before    INTEGER,
    not_after     INTEGER NOT NULL,
    crl_partition INTEGER NOT NULL,
    state         INTEGER NOT NULL CHECK (state BETWEEN 1 AND 3),
    reason        INTEGER NOT NULL,
    revoked_at    INTEGER,
    invalid_since INTEGER, -- RFC 5280 section 5.3.2, where whoever revoked it knew
    version       INTEGER NOT NULL,
    changed       INTEGER,
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
-- An identity's certificates that have not ended, without a look at those that have.
CREATE INDEX certificates_by_identity ON certificates (identity, not_after);
CREATE INDEX certificates_changed ON certificates (issuer, crl_partition, changed) WHERE changed IS NOT NULL;

-- Orders about whatever a selection has. Each is in effect from its row on, and the members' own rows follow, in the
-- order of their numbers, as far as progress says. A certificate after the mark, or that ended before the reach, is no
-- member.
CREATE TABLE revocation_sets (
    id            INTEGER PRIMARY KEY,
    issuer        INTEGER REFERENCES issuers (id),
    identity      INTEGER REFERENCES identities (id),
    lineage       BLOB CHECK (length(lineage) = 52), -- issuer and serial number of the first
    key_hash      BLOB CHECK (length(key_hash) = 32),
    profile       TEXT,
    label_name    TEXT,
    label_value   TEXT,
    issued_from   INTEGER,
    issued_until  INTEGER,
    action        INTEGER NOT NULL CHECK (action BETWEEN 1 AND 3), -- revoke, hold or release
    reason        INTEGER NOT NULL,
    invalid_since INTEGER,
    ordered_by    TEXT    NOT NULL,
    ordered_at    INTEGER NOT NULL,
    why           TEXT    NOT NULL,
    mark          INTEGER NOT NULL,
    reach         INTEGER NOT NULL,
    progress      INTEGER NOT NULL,
    total         INTEGER, -- null before they were counted
    ended         INTEGER NOT NULL, -- of the total, those that had ended when the order was given
    followed      INTEGER NOT NULL,
    done          INTEGER NOT NULL CHECK (done IN (0, 1)),
    CHECK ((label_name IS NULL) = (label_value IS NULL)),
    CHECK (done = 0 OR total IS NOT NULL)
) STRICT;
CREATE INDEX revocation_sets_open ON revocation_sets (id) WHERE done = 0;

-- CRL numbers are 20 octets, big-endian: as long as RFC 5280 section 5.2.3 lets them grow, and in order as they compare.
CREATE TABLE crl_numbers (
    issuer INTEGER PRIMARY KEY REFERENCES issuers (id),
    taken  BLOB    NOT NULL CHECK (length(taken) = 20)
) STRICT;

-- The newest CRL of each scope: partition 0 is the full CRL. The list is a file beside the store, unless it was signed
-- elsewhere and cannot be made again.
CREATE TABLE crls (
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    crl_partition INTEGER NOT NULL CHECK (crl_partition BETWEEN 0 AND 65535),
    delta         INTEGER NOT NULL CHECK (delta IN (0, 1)),
    number        BLOB    NOT NULL CHECK (length(number) = 20),
    this_update   INTEGER NOT NULL,
    next_update   INTEGER NOT NULL,
    position      INTEGER NOT NULL, -- in the log, up to which it knows all changes
    base_number   BLOB CHECK (length(base_number) = 20),
    base_update   INTEGER,
    base_position INTEGER,
    digest        BLOB    NOT NULL CHECK (length(digest) = 32),
    size          INTEGER NOT NULL,
    entries       INTEGER NOT NULL,
    der           BLOB,
    PRIMARY KEY (issuer, crl_partition, delta),
    CHECK ((base_number IS NULL) = (base_update IS NULL) AND (base_number IS NULL) = (base_position IS NULL))
) STRICT;

-- Every distribution point that was ever put into certificates.
CREATE TABLE crl_points (
    id            INTEGER PRIMARY KEY,
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    crl_partition INTEGER NOT NULL CHECK (crl_partition BETWEEN 1 AND 65535),
    url           TEXT    NOT NULL,
    delta_url     TEXT    NOT NULL, -- empty for none
    UNIQUE (issuer, crl_partition, url, delta_url)
) STRICT;

-- What CRLs list, packed, so that they are made without reading a row for each entry. It is derived from certificates, and
-- may be deleted: a segment holds what is revoked from its first serial number on, up to the next segment's, as things
-- stood at the position of its partition or later.
CREATE TABLE crl_segments (
    id            INTEGER PRIMARY KEY,
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    crl_partition INTEGER NOT NULL,
    first         BLOB    NOT NULL CHECK (length(first) = 20),
    entries       BLOB    NOT NULL,
    wanes_at      INTEGER NOT NULL, -- when a quarter of them has ended
    UNIQUE (issuer, crl_partition, first)
) STRICT;

CREATE TABLE crl_packed (
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    crl_partition INTEGER NOT NULL,
    position      INTEGER NOT NULL, -- in the log: all changes up to it are in the segments
    PRIMARY KEY (issuer, crl_partition)
) STRICT;

-- The log. An entry gets its id in the transaction of its change; since a transaction that fails gives its ids back,
-- they have no gaps and are the indexes. The last chain row says how far the log is sequenced; there is one for each
-- batch that was, and what lies between two follows from the entries.
CREATE TABLE log (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    entry BLOB    NOT NULL
) STRICT;

-- What identifies the log, drawn with it. A restore that forks the log draws another one.
CREATE TABLE log_epoch (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    epoch BLOB    NOT NULL CHECK (length(epoch) = 16)
) STRICT;
INSERT INTO log_epoch (id, epoch) VALUES (1, randomblob(16));

CREATE TABLE chain (
    id    INTEGER PRIMARY KEY,
    value BLOB    NOT NULL CHECK (length(value) = 32)
) STRICT;

-- How far time has come by what the store has lived through, which no clock that was set can hurry; no row before that
-- was asked for the first time.
CREATE TABLE age (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    time INTEGER NOT NULL
) STRICT;
