package postgrestest

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
)

// HasCommit reports whether data, which pgx sends to PostgreSQL, executes a COMMIT: as a query, or by binding the prepared
// statement (PostgreSQL, "Message Formats"). A test that relies on it must notice if it never does.
func HasCommit(data []byte) bool { return executesCommit.Match(data) }

// executesCommit matches a message Query, and a message Bind without a portal, whose statement has the name that pgx derives
// from the text.
var executesCommit = func() *regexp.Regexp {
	digest := sha256.Sum256([]byte("COMMIT"))
	return regexp.MustCompile(`(?s)Q.{4}COMMIT\x00|B.{4}\x00stmtcache_` + hex.EncodeToString(digest[:24]) + `\x00`)
}()
