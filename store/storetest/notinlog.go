package storetest

// NotInLog maps the tables and columns that the log does not contain to the reason. A replay must restore every other
// column, including the row IDs that log entries name.
var NotInLog = map[string]string{
	"goose_db_version":          "the version of the schema",
	"sqlite_sequence":           "SQLite's own",
	"epochs":                    "the servers that write now, and a restored store begins again",
	"leases":                    "of the epochs",
	"servers":                   "those that have opened this store, and a restored store begins again",
	"intents":                   "certificates that are being signed; when they are committed, the log has them",
	"age":                       "time that has passed, not a record; without it the newest entry's time is taken",
	"chain":                     "has a row for each batch that was sequenced; the chain values are checked by the replay",
	"log_epoch":                 "belongs to the store, and a log that forks has another one",
	"nonces":                    "expire after minutes; a restored store has another sealing key, so it accepts no earlier challenge; JWTs: see docs/threat-model.md",
	"sealing_key":               "a secret; without it, challenges that are minutes old are requested again",
	"acme_orders":               "for a day, and to find the account of a certificate, which orders again without them",
	"acme_authorizations":       "for a day, with their orders",
	"acme_accounts.contact":     "personal data",
	"acme_external_keys.sealed": "a secret; an operator creates another external key",
	"policies.document":         "of up to 1 MiB; the log has its digest",
	"operator_requests":         "for repeats after lost answers; entries have the request ID, and a call that changes nothing has no entry",
	"restores":                  "a restore that has not ended",
	"crl_segments":              "derived from certificates",
	"crl_packed":                "derived from certificates",
	"certificates.der":          "DER",
	"ca_certificates.der":       "DER",
	"crls.der":                  "DER",
	"cross_certificates.der":    "DER",
}
