package operator

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/internal/cli/file"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// tokenHeader is the first row of a file with tokens.
var tokenHeader = []string{"token_id", "token", "identity", "pattern", "expire_time"}

// batchSuffix is the suffix of the file that identifies a token batch. It is beside the file with the tokens until that is
// complete.
const batchSuffix = ".batch"

// batchID is the content of the file that identifies a token batch. It contains no secret.
type batchID struct {
	Batch   string `json:"batch"`   // 16 random bytes, in hexadecimal
	Options string `json:"options"` // hash of the options, in hexadecimal
}

// tokenFile is a file with the tokens of a token batch, in CSV. The file with the ID of the batch is beside it, and is
// written before the first token is created. Without the ID, a repeat could not replace the tokens that were created
// but not written.
type tokenFile struct {
	*os.File
	id    [16]byte // of the batch
	rows  int      // without the header
	names []string // the identities of the rows
}

// openTokenFile opens the file of a batch that was interrupted, or creates the file of a new batch. It refuses a file
// that belongs to no batch, or to one with other options.
func openTokenFile(path string, options [sha256.Size]byte) (*tokenFile, error) {
	f := &tokenFile{}
	var err error
	if f.id, err = openBatch(path, options); err != nil {
		return nil, err
	}
	if f.File, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := f.read(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openBatch returns the ID of the batch whose tokens are in a file. If there is no file, it creates an ID.
func openBatch(path string, options [sha256.Size]byte) (id [16]byte, err error) {
	content, err := os.ReadFile(path + batchSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		if err := file.Vacant(path); err != nil {
			return id, err
		}
		_, _ = rand.Read(id[:]) // never fails: without randomness crypto/rand ends the process
		content, err = json.Marshal(batchID{hex.EncodeToString(id[:]), hex.EncodeToString(options[:])})
		if err != nil {
			return id, err
		}
		return id, file.WriteNew(path+batchSuffix, append(content, '\n'), 0o600)
	}
	if err != nil {
		return id, err
	}
	var have batchID
	if err := json.Unmarshal(content, &have); err != nil {
		return id, fmt.Errorf("%s is damaged: move it and %s away, and revoke the tokens (brevet token revoke)", path+batchSuffix, path)
	}
	if have.Options != hex.EncodeToString(options[:]) {
		return id, fmt.Errorf("%s belongs to a batch of another operator, or with other options: repeat the same command, or choose another name", path)
	}
	b, err := hex.DecodeString(have.Batch)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%s is damaged: move it and %s away, and revoke the tokens (brevet token revoke)", path+batchSuffix, path)
	}
	return [16]byte(b), nil
}

// read locks the file, removes a row that was not written completely, and counts the rows.
func (f *tokenFile) read() error {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s is in use by another command: wait for its end", f.Name())
	}
	content, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	content = content[:bytes.LastIndexByte(content, '\n')+1]
	if err := f.Truncate(int64(len(content))); err != nil {
		return err
	}
	if _, err := f.Seek(int64(len(content)), io.SeekStart); err != nil {
		return err
	}
	if len(content) == 0 {
		return f.appendRows([][]string{tokenHeader})
	}
	rows, err := csv.NewReader(bytes.NewReader(content)).ReadAll()
	if err != nil || !slices.Equal(rows[0], tokenHeader) {
		return fmt.Errorf("%s was changed: restore it, or move it and %s away, and revoke the tokens (brevet token revoke)", f.Name(), f.Name()+batchSuffix)
	}
	for _, row := range rows[1:] {
		f.names = append(f.names, row[2])
	}
	f.rows = len(f.names)
	return nil
}

// write appends the rows of new tokens. The token with the number i is that of the identity identities[i], or of the
// pattern if identities is nil.
func (f *tokenFile) write(made []*brevetv1.CreateTokenResponse, identities []string, pattern string) error {
	var rows [][]string
	for i, t := range made {
		identity := ""
		if identities != nil {
			identity = identities[f.rows+i]
		}
		rows = append(rows, []string{t.GetTokenId(), t.GetToken(), identity, pattern, t.GetExpireTime().AsTime().UTC().Format(time.RFC3339)})
	}
	if err := f.appendRows(rows); err != nil {
		return err
	}
	f.rows += len(made)
	return nil
}

// appendRows appends rows with one write.
func (f *tokenFile) appendRows(rows [][]string) error {
	var text bytes.Buffer
	if err := csv.NewWriter(&text).WriteAll(rows); err != nil {
		return err
	}
	_, err := f.Write(text.Bytes())
	return err
}

// finish makes the complete file durable, and then removes the ID of the batch.
func (f *tokenFile) finish() error {
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Remove(f.Name() + batchSuffix)
}
