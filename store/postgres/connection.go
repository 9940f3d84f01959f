package postgres

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/brevet-pki/brevet/files"
)

// CheckConnection returns an error if a connection string is not valid. It must not contain a password, which would be in
// the configuration then. It reads the password file and the certificates that the string names. The error does not contain
// the string.
func CheckConnection(connection string) error {
	if hasPassword(connection) {
		return errPassword
	}
	if _, err := pgx.ParseConfig(connection); err != nil {
		return connectionError(err)
	}
	return nil
}

// parse checks a connection string, and the files of secrets that it names. It does not check the mode of files that the string
// does not name: those of the variables PGPASSFILE and PGSSLKEY, of a service file, and ~/.pgpass. Passwords in the environment
// and in a service file are accepted, too.
func parse(connection string) (*pgx.ConnConfig, error) {
	if hasPassword(connection) {
		return nil, errPassword
	}
	for _, key := range []string{"passfile", "sslkey"} {
		if err := checkSecret(setting(connection, key)); err != nil {
			return nil, fmt.Errorf("connect to PostgreSQL: %s: %w", key, err)
		}
	}
	config, err := pgx.ParseConfig(connection)
	if err != nil {
		return nil, connectionError(err)
	}
	return config, nil
}

// checkSecret returns an error if a file cannot be read, because pgx ignores a missing password file, or if every account can
// read it.
func checkSecret(path string) error {
	if path == "" {
		return nil
	}
	f, err := files.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return fmt.Errorf("every account can use %s with the mode %04o: give it mode 0600", path, mode)
	}
	return nil
}

// setting returns the value of a key in a connection string, or "". Like pgx, it takes the last of several values.
func setting(connection, key string) (value string) {
	if isURL.MatchString(connection) {
		_, query, _ := strings.Cut(connection, "?")
		for pair := range strings.SplitSeq(query, "&") {
			name, text, _ := strings.Cut(pair, "=")
			if plain, err := url.PathUnescape(name); err == nil && strings.TrimSpace(plain) == key { // pgx reports the error
				value, _ = url.PathUnescape(strings.TrimSpace(text))
			}
		}
		return value
	}
	for _, found := range settings.FindAllStringSubmatch(connection, -1) {
		if found[1] == key {
			value = escaped.ReplaceAllString(strings.Trim(found[2], "'"), "$1")
		}
	}
	return value
}

// connectionError returns the error for a connection string that pgx does not take. The text of pgx may contain parts of the
// string, so only errors about files are part of it.
func connectionError(err error) error {
	if file := (*fs.PathError)(nil); errors.As(err, &file) {
		return fmt.Errorf("a file that the connection string names cannot be read: %w", file)
	}
	if inner := errors.Unwrap(err); inner != nil && strings.HasPrefix(inner.Error(), "unable to load cert") {
		return fmt.Errorf("sslcert and sslkey are not a certificate with its key: %w", inner)
	}
	return errConnection
}

// errConnection is the error of a connection string that pgx does not take. The text of pgx may contain parts of it.
var errConnection = errors.New("not a connection string of PostgreSQL, such as host=db.fleet.example dbname=brevet user=brevet_server: " +
	"correct it, and the files that it names")

// errPassword is the error of a connection string with a secret.
var errPassword = errors.New("the connection string has a password: put that of the account into a file of mode 0600, and name it with passfile=; " +
	"store a key for TLS without one, in a file of mode 0600")

// hasPassword reports whether a connection string has a password, of the account or of a key for TLS, as a key or in a URL.
func hasPassword(connection string) bool {
	plain, err := url.PathUnescape(connection) // pgx takes keys of a URL in this form, too
	return passwordInURL.MatchString(connection) || passwordKey.MatchString(connection) || err == nil && passwordKey.MatchString(plain)
}

// Package url does not parse a URL with several hosts, which pgx takes.
var (
	passwordInURL = regexp.MustCompile(`^postgres(ql)?://[^/?#@]*:[^/?#]*@`)
	passwordKey   = regexp.MustCompile(`(^|[\s?&'])(ssl)?password\s*=`)
	isURL         = regexp.MustCompile(`^postgres(ql)?://`)
	settings      = regexp.MustCompile(`(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)`)
	escaped       = regexp.MustCompile(`\\(.)`)
)

// accounts is where the documentation creates the accounts of the database.
const accounts = `docs/operations.md, "Accounts of the database"`

// hints maps classes and codes of errors (PostgreSQL, appendix A) at the start of a server to what an operator should do.
var hints = map[string]string{
	"28":    "compare user, dbname, sslcert and sslkey, passfile and sslmode with pg_hba.conf on the machine of PostgreSQL, whose log has more",
	"3D000": "create the database, or correct dbname: " + accounts,
	"3F000": "create the schema of the store, and set search_path of the account: " + accounts,
	"42501": "use the account of the servers, which owns the schema of the store, and set its search_path: " + accounts,
}

// hinted adds to an error at the start of a server what an operator should do.
func hinted(err error) error {
	if own := (*pgconn.PgError)(nil); errors.As(err, &own) && len(own.Code) == 5 {
		for _, code := range []string{own.Code, own.Code[:2]} {
			if hint, ok := hints[code]; ok {
				return fmt.Errorf("%s: %w", hint, err)
			}
		}
	}
	if errors.As(err, new(x509.UnknownAuthorityError)) || errors.As(err, new(x509.HostnameError)) {
		return fmt.Errorf("name sslrootcert and host so that the certificate of PostgreSQL fits: %w", err)
	}
	return err
}
