-- The tables of a Brevet store. Times are milliseconds since 1970, UTC. Rows refer to other rows by integers, so that
-- neither the 32 bytes of an issuer ID nor a SPIFFE ID is repeated in each certificate and index.

-- +goose Up
PRAGMA application_id = 1112692308; -- "BRVT": Brevet refuses databases of other programs

-- The epochs of the servers that write the journal. A server without a row cannot write any more. The server of the oldest one
-- leads. last_batch shows after an ambiguous COMMIT whether the transaction was applied.
CREATE TABLE epochs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    server     TEXT    NOT NULL UNIQUE, -- its name; empty for SQLite, which one server has for itself
    last_batch BLOB CHECK (length(last_batch) = 16) -- of the last intent that its newest transaction wrote
) STRICT;

-- When each epoch may be deleted, by the clock of the database. A server extends its lease while a transaction of its own
-- writes, which locks the row of its epoch.
CREATE TABLE leases (
    epoch INTEGER NOT NULL PRIMARY KEY REFERENCES epochs (id) ON DELETE CASCADE,
    until INTEGER NOT NULL
) STRICT;

-- The servers that ever had an epoch. Each has an archive of the log since then, which had all entries up to an index when
-- the server recorded it. No entry leaves the log that the archive of a server with an epoch may lack. process is the first
-- epoch of the newest process with the name. Older ones stop for good.
CREATE TABLE servers (
    name     TEXT    NOT NULL PRIMARY KEY,
    process  INTEGER NOT NULL,
    archived INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Intents: one row for each batch of certificates that may be signed. It is deleted when all of them are recorded.
CREATE TABLE intents (
    batch BLOB    NOT NULL PRIMARY KEY CHECK (length(batch) = 16),
    epoch INTEGER NOT NULL,
    items BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

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

-- Certificates that an installed root signed for the subject and key of another one.
CREATE TABLE cross_certificates (
    id           INTEGER PRIMARY KEY,
    signer       INTEGER NOT NULL REFERENCES issuers (id),
    subject      INTEGER NOT NULL REFERENCES issuers (id),
    fingerprint  BLOB    NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    der          BLOB    NOT NULL,
    installed_at INTEGER NOT NULL,
    UNIQUE (signer, subject)
) STRICT;

-- The rules of all revisions of the policy that have registered identities. The count makes it cheap to enforce the total
-- of a rule, however many identities it has registered.
CREATE TABLE policy_rules (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    identities INTEGER NOT NULL CHECK (identities > 0) -- that the rule has registered
) STRICT;

CREATE TABLE identities (
    id           INTEGER PRIMARY KEY,
    spiffe_id    TEXT    NOT NULL UNIQUE,
    kind         INTEGER NOT NULL,
    profile      TEXT    NOT NULL,
    labels       TEXT    NOT NULL, -- JSON, like dns_names and ip_addresses
    dns_names    TEXT    NOT NULL,
    ip_addresses TEXT    NOT NULL,
    state        INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
    resumes      INTEGER CHECK (resumes IN (1, 2)), -- the state before a suspension
    revision     INTEGER NOT NULL CHECK (revision > 0),
    created_at   INTEGER NOT NULL,
    subject      BLOB CHECK (length(subject) = 33), -- of its evidence: the number of the kind, and the hash
    rule         INTEGER REFERENCES policy_rules (id), -- that registered it; NULL for an operator or a part of Brevet
    terms        TEXT, -- of its enrollment, JSON; NULL for none
    roles        INTEGER NOT NULL DEFAULT 0 CHECK (roles BETWEEN 0 AND 15), -- of an operator: a bit for each role
    recoveries   INTEGER NOT NULL DEFAULT 0, -- in a row, with the keys of expired certificates
    CHECK ((state = 3) = (resumes IS NOT NULL)),
    CHECK (roles = 0 OR kind = 3)
) STRICT;
CREATE UNIQUE INDEX identities_by_subject ON identities (subject) WHERE subject IS NOT NULL;

-- The labels again, to search identities by a label. An identity without labels has no row.
CREATE TABLE identity_labels (
    name     TEXT    NOT NULL,
    value    TEXT    NOT NULL,
    identity INTEGER NOT NULL REFERENCES identities (id),
    PRIMARY KEY (name, value, identity)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id         INTEGER PRIMARY KEY,
    token      BLOB    NOT NULL UNIQUE CHECK (length(token) = 32), -- the hash of the secret
    identity   INTEGER REFERENCES identities (id), -- NULL for a token with a pattern that is not bound
    revision   INTEGER NOT NULL, -- of the identity, when the token was created, or a token with a pattern was bound
    profile    TEXT    NOT NULL,
    expires_at INTEGER NOT NULL,
    replaces   INTEGER NOT NULL CHECK (replaces IN (0, 1)),
    created_by TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    request    BLOB CHECK (length(request) = 16),
    key_hash   BLOB CHECK (length(key_hash) = 32),
    spent      INTEGER NOT NULL DEFAULT 0 CHECK (spent IN (0, 1)),
    creator    INTEGER REFERENCES identities (id), -- NULL for a part of Brevet
    creator_certificate BLOB CHECK (length(creator_certificate) = 52), -- issuer ID and serial number
    era        INTEGER NOT NULL, -- the number of earlier revocations of all tokens of its creator
    revoked    TEXT, -- why this token was revoked, unless all tokens of its creator were
    pattern    TEXT, -- of the identities that it can enroll, whose kind and labels (JSON) follow; NULL for one identity
    kind       INTEGER,
    labels     TEXT,
    networks   TEXT, -- from which it can be used, as JSON; NULL for all
    required_key BLOB CHECK (length(required_key) = 32), -- hash of the only key for which it can be used; NULL for any
    CHECK ((pattern IS NULL) = (kind IS NULL)),
    CHECK ((pattern IS NULL) = (labels IS NULL)),
    CHECK (identity IS NOT NULL OR pattern IS NOT NULL AND request IS NULL),
    CHECK ((request IS NULL) = (key_hash IS NULL)),
    CHECK ((creator IS NULL) = (creator_certificate IS NULL))
) STRICT;
CREATE INDEX tokens_by_creation ON tokens (created_at);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);
CREATE INDEX tokens_by_identity ON tokens (identity);
CREATE INDEX tokens_by_creator ON tokens (creator) WHERE creator IS NOT NULL;

-- Nonces that were consumed, until the retention removes them. Before that they expire, so they are never accepted again.
CREATE TABLE nonces (
    expires_at INTEGER NOT NULL,
    nonce      BLOB    NOT NULL CHECK (length(nonce) = 16),
    PRIMARY KEY (expires_at, nonce)
) STRICT, WITHOUT ROWID;

-- The key that seals challenges. It is generated when the store is created, not by SQLite, whose random numbers are not
-- meant for keys.
CREATE TABLE sealing_key (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    key BLOB    NOT NULL CHECK (length(key) = 32)
) STRICT;

-- External keys of ACME. Each creates one account. The HMAC key is sealed with a key that is derived from sealing_key. It
-- is erased when the external key is used, revoked or expired.
CREATE TABLE acme_external_keys (
    id         INTEGER PRIMARY KEY,
    public_id  BLOB    NOT NULL UNIQUE CHECK (length(public_id) = 16),
    identity   INTEGER REFERENCES identities (id), -- of all certificates of the account
    rule       TEXT, -- of the policy: the only one that may decide about the orders of the account
    sealed     BLOB, -- the HMAC key; NULL after it was erased
    created_by TEXT    NOT NULL,
    creator    INTEGER REFERENCES identities (id), -- NULL for a part of Brevet
    creator_certificate BLOB CHECK (length(creator_certificate) = 52), -- issuer ID and serial number
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked    TEXT, -- why it was revoked
    CHECK ((identity IS NULL) = (rule IS NOT NULL))
) STRICT;
CREATE INDEX acme_external_keys_by_creator ON acme_external_keys (creator) WHERE creator IS NOT NULL;
CREATE INDEX acme_external_keys_sealed ON acme_external_keys (expires_at) WHERE sealed IS NOT NULL;

CREATE TABLE acme_accounts (
    id           INTEGER PRIMARY KEY,
    public_id    BLOB    NOT NULL UNIQUE CHECK (length(public_id) = 16),
    key          BLOB    NOT NULL, -- SubjectPublicKeyInfo
    thumbprint   BLOB    NOT NULL UNIQUE CHECK (length(thumbprint) = 32), -- of the key, RFC 7638
    status       INTEGER NOT NULL CHECK (status BETWEEN 1 AND 3), -- valid, deactivated or revoked
    contact      TEXT, -- JSON; NULL for none
    external_key INTEGER UNIQUE REFERENCES acme_external_keys (id),
    created_at   INTEGER NOT NULL
) STRICT;

-- Orders of ACME. Their status follows from the certificate, the authorizations and the time. Orders without a
-- certificate are removed one day after they expire, and the retention removes the others with their certificate.
CREATE TABLE acme_orders (
    id          INTEGER PRIMARY KEY,
    public_id   BLOB    NOT NULL UNIQUE CHECK (length(public_id) = 16),
    account     INTEGER NOT NULL REFERENCES acme_accounts (id),
    identifiers TEXT    NOT NULL, -- JSON
    profile     TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    replaces    BLOB CHECK (length(replaces) = 52), -- issuer ID and serial number of a certificate, as in certificate
    certificate BLOB CHECK (length(certificate) = 52),
    names       BLOB CHECK (length(names) = 16), -- digest of the identity and the names
    not_after   INTEGER, -- of the certificate
    CHECK ((certificate IS NULL) = (names IS NULL)),
    CHECK ((certificate IS NULL) = (not_after IS NULL))
) STRICT;
CREATE INDEX acme_orders_by_account ON acme_orders (account, certificate, expires_at);
CREATE UNIQUE INDEX acme_orders_by_certificate ON acme_orders (certificate) WHERE certificate IS NOT NULL;
CREATE INDEX acme_orders_by_names ON acme_orders (names, not_after) WHERE names IS NOT NULL;
CREATE INDEX acme_orders_by_replaces ON acme_orders (replaces, certificate, expires_at) WHERE replaces IS NOT NULL;
CREATE INDEX acme_orders_by_not_after ON acme_orders (not_after) WHERE certificate IS NOT NULL;
CREATE INDEX acme_orders_by_expiry ON acme_orders (expires_at) WHERE certificate IS NULL;

CREATE TABLE acme_authorizations (
    id           INTEGER PRIMARY KEY,
    public_id    BLOB    NOT NULL UNIQUE CHECK (length(public_id) = 16),
    acme_order   INTEGER NOT NULL REFERENCES acme_orders (id),
    place        INTEGER NOT NULL, -- of its name in the order
    token        TEXT    NOT NULL, -- of its challenges
    offered      INTEGER NOT NULL, -- a bit for each type of challenge
    status       INTEGER NOT NULL CHECK (status BETWEEN 1 AND 4), -- pending, valid, invalid or deactivated
    attempt      INTEGER CHECK (attempt BETWEEN 1 AND 3), -- the challenge that is processed, or that decided
    attempted_at INTEGER,
    failure      BLOB, -- JSON
    UNIQUE (acme_order, place),
    CHECK ((attempt IS NULL) = (attempted_at IS NULL))
) STRICT;

-- The revisions of the policy. They are never changed or deleted. A revision that was restored from the log has no document.
CREATE TABLE policies (
    revision   INTEGER PRIMARY KEY CHECK (revision > 0),
    document   BLOB CHECK (length(document) BETWEEN 1 AND 1048576),
    sha256     BLOB    NOT NULL CHECK (length(sha256) = 32),
    applied_by TEXT    NOT NULL,
    applied_at INTEGER NOT NULL,
    comment    TEXT    NOT NULL
) STRICT;

-- Revocations of all tokens that an identity had created. A row revokes the tokens of its era and of earlier ones, however
-- many there are. It is never deleted.
CREATE TABLE token_revocations (
    creator INTEGER NOT NULL REFERENCES identities (id),
    era     INTEGER NOT NULL,
    reason  TEXT    NOT NULL,
    PRIMARY KEY (creator, era)
) STRICT, WITHOUT ROWID;

-- RPCs of operators with a request ID, and their results, to answer repeated RPCs. They are deleted after the retention.
CREATE TABLE operator_requests (
    id      INTEGER PRIMARY KEY,
    caller  INTEGER NOT NULL REFERENCES identities (id),
    request BLOB    NOT NULL CHECK (length(request) = 16),
    content BLOB    NOT NULL CHECK (length(content) = 32), -- SHA-256 of the operation and its arguments
    made_at INTEGER NOT NULL,
    valid   INTEGER NOT NULL, -- certificates that changed and had not expired, or tokens that were revoked
    expired INTEGER NOT NULL, -- certificates that changed and had expired
    bulk    INTEGER REFERENCES bulk_revocations (id), -- that the RPC created
    token   BLOB CHECK (length(token) = 32), -- that the RPC created
    rotation INTEGER REFERENCES rotations (id), -- that the RPC started or stopped
    UNIQUE (caller, request)
) STRICT;
CREATE INDEX operator_requests_by_time ON operator_requests (made_at);

-- Certified public keys, each of one identity. The ID is the first 8 bytes of the SHA-256 of the SubjectPublicKeyInfo, as
-- a signed integer, so that no index is needed. Two keys with the same ID cannot both be certified. A key without
-- certificates is deleted, unless it is compromised.
CREATE TABLE keys (
    id             INTEGER PRIMARY KEY,
    rest           BLOB    NOT NULL CHECK (length(rest) = 24),
    identity       INTEGER NOT NULL REFERENCES identities (id),
    compromised_at INTEGER,
    uses           INTEGER NOT NULL CHECK (uses >= 0) -- how often certificates refer to it, in key and successor
) STRICT;

-- One row for each serial number that an issuing key has signed, or was about to sign. A certificate that was never
-- delivered has no identity, has a digest instead of DER, and is revoked. key and successor are IDs of keys, which count
-- their uses: with a foreign key, SQLite would read all certificates when a key is deleted. changed is the ID of the log
-- entry of the last status change after the issuance; NULL if there was none.
CREATE TABLE certificates (
    id            INTEGER PRIMARY KEY,
    serial        BLOB    NOT NULL UNIQUE CHECK (length(serial) = 20),
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    identity      INTEGER REFERENCES identities (id),
    request       BLOB CHECK (length(request) = 16),
    key           INTEGER,
    successor     INTEGER, -- the key of its renewal
    superseded_by INTEGER, -- the renewal that revoked it
    profile       TEXT,
    issued_at     INTEGER NOT NULL,
    not_before    INTEGER,
    not_after     INTEGER NOT NULL,
    crl_partition INTEGER NOT NULL,
    state         INTEGER NOT NULL CHECK (state BETWEEN 1 AND 3),
    reason        INTEGER NOT NULL,
    revoked_at    INTEGER,
    invalid_since INTEGER, -- RFC 5280 section 5.3.2
    version       INTEGER NOT NULL,
    changed       INTEGER,
    account       INTEGER REFERENCES acme_accounts (id), -- of ACME, which has ordered it; NULL for none
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
-- Finds the unexpired certificates of an identity without reading its expired ones, and tells those apart that accounts have
-- ordered.
CREATE INDEX certificates_by_identity ON certificates (identity, not_after, account);
CREATE INDEX certificates_by_account ON certificates (account, not_after) WHERE account IS NOT NULL;
CREATE INDEX certificates_changed ON certificates (issuer, crl_partition, changed) WHERE changed IS NOT NULL;

-- Bulk revocations. Each takes effect when its row is written. The status of each member is changed later, in the order of
-- their IDs, up to progress. A certificate with an ID above mark, or with a notAfter before reach, is no member.
CREATE TABLE bulk_revocations (
    id            INTEGER PRIMARY KEY,
    issuer        INTEGER REFERENCES issuers (id),
    identity      INTEGER REFERENCES identities (id),
    lineage       BLOB CHECK (length(lineage) = 52), -- issuer ID and serial number of its first certificate
    key_hash      BLOB CHECK (length(key_hash) = 32),
    profile       TEXT,
    label_name    TEXT,
    label_value   TEXT,
    issued_from   INTEGER,
    issued_until  INTEGER,
    action        INTEGER NOT NULL CHECK (action BETWEEN 1 AND 3), -- revoke, hold or unhold
    reason        INTEGER NOT NULL,
    invalid_since INTEGER,
    requested_by  TEXT    NOT NULL,
    requested_at  INTEGER NOT NULL,
    comment       TEXT    NOT NULL,
    mark          INTEGER NOT NULL,
    reach         INTEGER NOT NULL,
    progress      INTEGER NOT NULL,
    total         INTEGER, -- the number of members; NULL before they are counted
    expired       INTEGER NOT NULL, -- of the total, those that had expired at requested_at
    applied       INTEGER NOT NULL, -- of the total, those whose status was changed
    done          INTEGER NOT NULL CHECK (done IN (0, 1)),
    CHECK ((label_name IS NULL) = (label_value IS NULL)),
    CHECK (done = 0 OR total IS NOT NULL)
) STRICT;
CREATE INDEX bulk_revocations_open ON bulk_revocations (id) WHERE done = 0;

-- Rotations: certificates that are to be renewed early, spread over a period. A certificate with an ID above mark, or with a
-- notAfter before started_at, is not affected. A rotation is open until ended_at is set.
CREATE TABLE rotations (
    id           INTEGER PRIMARY KEY,
    issuer       INTEGER REFERENCES issuers (id),
    identity     INTEGER REFERENCES identities (id),
    key_hash     BLOB CHECK (length(key_hash) = 32),
    profile      TEXT,
    label_name   TEXT,
    label_value  TEXT,
    issued_from  INTEGER,
    issued_until INTEGER,
    period       INTEGER NOT NULL CHECK (period > 0), -- in milliseconds
    started_by   TEXT    NOT NULL,
    started_at   INTEGER NOT NULL,
    comment      TEXT    NOT NULL,
    mark         INTEGER NOT NULL,
    affected     INTEGER NOT NULL, -- the number of affected certificates
    ended_at     INTEGER,
    stopped      INTEGER NOT NULL DEFAULT 0 CHECK (stopped IN (0, 1)), -- by an operator
    renewed      INTEGER NOT NULL DEFAULT 0, -- of the affected, at the end
    due          INTEGER NOT NULL DEFAULT 0, -- of the affected, at the end
    CHECK ((label_name IS NULL) = (label_value IS NULL)),
    CHECK (stopped = 0 OR ended_at IS NOT NULL)
) STRICT;
CREATE INDEX rotations_open ON rotations (id) WHERE ended_at IS NULL;

-- CRL numbers have 20 bytes, big-endian, the maximum of RFC 5280 section 5.2.3. Comparing the bytes compares the numbers.
CREATE TABLE crl_numbers (
    issuer INTEGER PRIMARY KEY REFERENCES issuers (id),
    taken  BLOB    NOT NULL CHECK (length(taken) = 20)
) STRICT;

-- The newest CRL of each scope. Partition 0 is the full CRL. The CRL itself is a file beside the store. Only if it was
-- signed elsewhere, and cannot be signed again here, it is in der.
CREATE TABLE crls (
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    crl_partition INTEGER NOT NULL CHECK (crl_partition BETWEEN 0 AND 65535),
    delta         INTEGER NOT NULL CHECK (delta IN (0, 1)),
    number        BLOB    NOT NULL CHECK (length(number) = 20),
    this_update   INTEGER NOT NULL,
    next_update   INTEGER NOT NULL,
    position      INTEGER NOT NULL, -- the index of the log entry up to which it has all changes
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

-- All distribution points that certificates contain.
CREATE TABLE crl_points (
    id            INTEGER PRIMARY KEY,
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    crl_partition INTEGER NOT NULL CHECK (crl_partition BETWEEN 1 AND 65535),
    url           TEXT    NOT NULL,
    delta_url     TEXT    NOT NULL, -- empty for none
    UNIQUE (issuer, crl_partition, url, delta_url)
) STRICT;

-- The entries of CRLs in a compact form, so that signing a CRL does not read one row for each entry. They are derived from
-- certificates, and may be deleted. A segment has the revoked certificates from its first serial number up to that of the
-- next segment, as of the position of its partition or later.
CREATE TABLE crl_segments (
    id            INTEGER PRIMARY KEY,
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    crl_partition INTEGER NOT NULL,
    first         BLOB    NOT NULL CHECK (length(first) = 20),
    entries       BLOB    NOT NULL,
    compact_at    INTEGER NOT NULL, -- when a quarter of the entries has expired
    UNIQUE (issuer, crl_partition, first)
) STRICT;

CREATE TABLE crl_packed (
    issuer        INTEGER NOT NULL REFERENCES issuers (id),
    crl_partition INTEGER NOT NULL,
    position      INTEGER NOT NULL, -- the index of the log entry up to which the segments have all changes
    packer        BLOB    NOT NULL CHECK (length(packer) = 16), -- the compaction that may write segments
    PRIMARY KEY (issuer, crl_partition)
) STRICT;

-- The log. An entry gets its ID in the transaction of its change. A failed transaction returns its IDs, so they have no gaps
-- and are the indexes of the log. The newest row of chain says how far the log is sequenced. There is a row for each
-- sequenced batch; the chain values between two rows are computed from the entries. Old entries leave when the archives have
-- them: of their batches, the rows of chain stay whose ID is a multiple of 4096, and the last one.
CREATE TABLE log (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    entry BLOB    NOT NULL
) STRICT;

-- The random ID of the log. A restore that forks the log generates another one.
CREATE TABLE log_epoch (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    epoch BLOB    NOT NULL CHECK (length(epoch) = 16)
) STRICT;
INSERT INTO log_epoch (id, epoch) VALUES (1, randomblob(16));

CREATE TABLE chain (
    id    INTEGER PRIMARY KEY,
    value BLOB    NOT NULL CHECK (length(value) = 32)
) STRICT;

-- The age of the records: the time as far as the store has run, which a clock that was set ahead does not change. There is
-- no row before it is recorded for the first time. epoch is that of the process that has advanced it last.
CREATE TABLE age (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    time  INTEGER NOT NULL,
    epoch INTEGER NOT NULL
) STRICT;

-- A restore of the store that has not ended. While there is a row, nothing is served from the store. list is the SHA-256 of
-- what cannot be known without the archive, until an operator accepts it; NULL while the restore runs.
CREATE TABLE restores (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    list BLOB CHECK (length(list) = 32)
) STRICT;
