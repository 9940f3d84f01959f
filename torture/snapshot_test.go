package torture

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/mattn/go-sqlite3" // plain SQL, no code of the product
)

// A row is a certificate on record.
type row struct {
	id       int
	serial   string // hexadecimal, upper case
	identity string // "" for a certificate that was not delivered
	state    int    // 1 good, 2 hold, 3 revoked
	der      []byte
	key      string // hash of the public key in hexadecimal, if the certificate was delivered
	keyRow   int    // row of its key in the store
	nextKey  int    // row of the key of its renewal; zero for none
	digest   string // of its TBSCertificate in hexadecimal: computed from der, or from the intent if it was not delivered
}

// A logRecord is an entry of the log.
type logRecord struct {
	entry []byte
	chain []byte // nil before it is sequenced
}

// A snapshot is the content of a server's files.
type snapshot struct {
	rows       []row
	identities map[string]int // by SPIFFE ID: 1 registered, 2 enrolled, 3 suspended, 4 retired
	log        []logRecord
	archive    []logRecord
	intents    int // number of open intents
	openBulks  int // number of bulk revocations that are not complete
	bulks      []bulkRecord
	crls       []crlRecord
	partitions map[string]int           // by serial number: the CRL partition
	labels     map[string]string        // by SPIFFE ID: the batch label
	crlNumbers *big.Int                 // highest CRL number taken of any issuer
	signedCRLs int                      // number of CRLs that had been signed before the files were read
	orders     map[string]orderRecord   // by ID
	accounts   map[string]accountRecord // by ID
	rotations  map[int64]rotationRecord // by ID
}

func openFiles(dir string) (*sql.DB, error) {
	file := url.URL{Scheme: "file", Opaque: filepath.Join(dir, storeName), RawQuery: "mode=ro&_query_only=true&_busy_timeout=5000"}
	return sql.Open("sqlite3", file.String())
}

// openRecords opens the store of an instance for reading. dir has the store of SQLite.
func (w *instance) openRecords(dir string) (*sql.DB, error) {
	if w.database != "" {
		return sql.Open("pgx", w.database)
	}
	return openFiles(dir)
}

// read reads the store and the archive in a directory. Servers may have them open.
func (w *instance) read(dir string) (*snapshot, error) {
	_, signedCRLs := w.signatures.all() // each was signed after its number was taken
	db, err := w.openRecords(dir)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	tx, err := db.BeginTx(context.Background(), &sql.TxOptions{Isolation: w.isolation(), ReadOnly: w.database != ""})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // the transaction only reads
	s := &snapshot{signedCRLs: signedCRLs, identities: map[string]int{}, labels: map[string]string{}, crlNumbers: &big.Int{}, orders: map[string]orderRecord{}, accounts: map[string]accountRecord{}, rotations: map[int64]rotationRecord{}}
	if s.archive, err = readArchive(filepath.Join(dir, archiveName)); err != nil {
		return nil, err
	}
	return s, errors.Join(s.readRows(tx), s.readLog(tx), s.readBulks(tx), s.readCRLs(tx), s.readACME(tx), s.readRotations(tx), s.readRest(tx))
}

// isolation is the level at which all statements of a transaction see the same state. SQLite has no other.
func (w *instance) isolation() sql.IsolationLevel {
	if w.database != "" {
		return sql.LevelRepeatableRead
	}
	return sql.LevelDefault
}

// query calls visit for every row of a statement's result.
func query(tx *sql.Tx, statement string, visit func(scan func(...any) error) error) error {
	rows, err := tx.Query(statement)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := visit(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (s *snapshot) readRows(tx *sql.Tx) error {
	return query(tx, `SELECT c.id, hex(c.serial), coalesce(i.spiffe_id, ''), c.state, coalesce(c.key, 0), coalesce(c.successor, 0), c.der, c.digest
		FROM certificates c LEFT JOIN identities i ON i.id = c.identity ORDER BY c.id`,
		func(scan func(...any) error) error {
			var r row
			var digest []byte
			if err := scan(&r.id, &r.serial, &r.identity, &r.state, &r.keyRow, &r.nextKey, &r.der, &digest); err != nil {
				return err
			}
			r.digest = hex.EncodeToString(digest)
			if r.der != nil {
				c, err := x509.ParseCertificate(r.der)
				if err != nil {
					return err
				}
				if serialOf(c) != r.serial {
					return fmt.Errorf("the certificate on record as %s has the serial number %s", r.serial, serialOf(c))
				}
				r.key = keyOf(c)
				sum := sha256.Sum256(c.RawTBSCertificate)
				r.digest = hex.EncodeToString(sum[:])
			}
			s.rows = append(s.rows, r)
			return nil
		})
}

func (s *snapshot) readLog(tx *sql.Tx) error {
	return query(tx, `SELECT l.id, l.entry, c.value FROM log l LEFT JOIN chain c ON c.id = l.id ORDER BY l.id`,
		func(scan func(...any) error) error {
			var id int
			var l logRecord
			if err := scan(&id, &l.entry, &l.chain); err != nil {
				return err
			}
			if id != len(s.log)+1 {
				return fmt.Errorf("the log has no entry %d", len(s.log)+1)
			}
			s.log = append(s.log, l)
			return nil
		})
}

func (s *snapshot) readRest(tx *sql.Tx) error {
	return errors.Join(
		query(tx, `SELECT spiffe_id, state FROM identities`, func(scan func(...any) error) error {
			var id string
			var state int
			err := scan(&id, &state)
			s.identities[id] = state
			return err
		}),
		query(tx, `SELECT count(*) FROM intents`, func(scan func(...any) error) error { return scan(&s.intents) }),
		query(tx, `SELECT taken FROM crl_numbers ORDER BY taken DESC LIMIT 1`, func(scan func(...any) error) error {
			var taken []byte
			err := scan(&taken)
			s.crlNumbers.SetBytes(taken)
			return err
		}),
	)
}

// readArchive reads an archive up to an incomplete batch, and computes the chain. It implements the description in
// translog/batch.go without code of that package.
func readArchive(path string) ([]logRecord, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(content, []byte("brevet log archive 3\n"))
	const epochSize = 16 + 4 // with its checksum
	if ok = ok && len(rest) >= epochSize; ok {
		rest = rest[epochSize:]
	}
	if !ok {
		return nil, errors.New("the archive has no header")
	}
	var records []logRecord
	chain := make([]byte, sha256.Size)
	for len(rest) >= 16 {
		length, index := int(binary.BigEndian.Uint32(rest[:4])), binary.BigEndian.Uint64(rest[4:12])
		if index != uint64(len(records))+1 {
			return nil, fmt.Errorf("the archive has entry %d after %d", index, len(records))
		}
		if len(rest) < 16+length+sha256.Size {
			break
		}
		for entries := rest[16 : 16+length]; len(entries) > 0; {
			size, n := binary.Uvarint(entries)
			if n <= 0 || size > uint64(len(entries)-n) {
				return nil, fmt.Errorf("the archive has an invalid length of entry %d", len(records)+1)
			}
			entry := entries[n : n+int(size)]
			leaf := sha256.Sum256(append([]byte{0}, entry...))
			node := sha256.Sum256(append(append([]byte{1}, chain...), leaf[:]...))
			chain = node[:]
			records, entries = append(records, logRecord{entry, chain}), entries[n+int(size):]
		}
		if !bytes.Equal(chain, rest[16+length:16+length+sha256.Size]) {
			return nil, fmt.Errorf("the archive's chain is wrong in the batch of entries %d to %d", index, len(records))
		}
		rest = rest[16+length+sha256.Size:]
	}
	return records, nil
}
