package enroll

import (
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/pki"
)

// pending is a request in progress. After an error or a crash the agent repeats it unchanged. For the same request ID
// and key, the Authority returns the same certificate. If the key differs, the Authority assumes that the credential
// was cloned.
type pending struct {
	id  pki.RequestID
	key crypto.Signer
	// by identifies the authorization of the request. It is "certificate " with the serial number of the certificate to
	// renew, or the kind and subject of the evidence, such as "token 6f0c…" or "token 6f0c… and tpm 9f86…".
	by string
}

// pendingFile is the JSON in pending.json.
type pendingFile struct {
	RequestID []byte `json:"request_id"`
	By        string `json:"by"`
	Key       []byte `json:"key"`           // PKCS #8, or a TSS2 key if TPM is set
	TPM       string `json:"tpm,omitempty"` // path of the TPM that the key is in
}

// errPending means that pending.json is damaged. It does not wrap the parse error, which could contain the private key.
var errPending = errors.New(pendingName + " does not parse")

// preparePending returns the request in progress if its authorization is by. Otherwise it generates and records a new
// request. When it returns, the request is durable.
func (d *Directory) preparePending(by string, kind pki.KeyType) (pending, error) {
	switch old, err := d.readPending(); {
	case errors.Is(err, errPending):
		d.log.Warn("the record of the request in progress is damaged, making a new request",
			"file", filepath.Join(d.path, pendingName))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return pending{}, fmt.Errorf("read the request in progress: %w", err)
	case err == nil && old.by == by:
		// An earlier process may have ended after the rename and before the flush.
		if err := d.disk(change{kind: flush, path: d.path}); err != nil {
			return pending{}, fmt.Errorf("record the request before making it: %w", err)
		}
		return old, nil
	}
	key, err := d.newKey(kind)
	if err != nil {
		return pending{}, fmt.Errorf("make a key: %w", err)
	}
	return d.newPending(by, key)
}

// newPending records a new request with a key, in place of the one in progress if there is one.
func (d *Directory) newPending(by string, key crypto.Signer) (pending, error) {
	r := pending{by: by, key: key}
	var err error
	if r.id, err = newRequestID(); err != nil {
		return r, err
	}
	data, err := r.encode()
	if err != nil {
		return r, err
	}
	if err := d.disk.replace(filepath.Join(d.path, pendingName), data); err != nil {
		return r, fmt.Errorf("record the request before making it: %w", err)
	}
	return r, nil
}

func newRequestID() (pki.RequestID, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: without randomness crypto/rand ends the process
	return pki.RequestIDFromBytes(id[:])
}

func (r pending) encode() ([]byte, error) {
	_, key, err := encodeKey(r.key)
	if err != nil {
		return nil, fmt.Errorf("encode the private key: %w", err)
	}
	data, err := json.Marshal(pendingFile{RequestID: r.id.Bytes(), By: r.by, Key: key, TPM: homeOf(r.key)})
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return data, nil
}

func (d *Directory) readPending() (pending, error) {
	data, err := readFile(filepath.Join(d.path, pendingName))
	if err != nil {
		return pending{}, err
	}
	var f pendingFile
	if err := json.Unmarshal(data, &f); err != nil {
		return pending{}, errPending
	}
	id, idErr := pki.RequestIDFromBytes(f.RequestID)
	keyType := fileKeyType
	if f.TPM != "" {
		keyType = tpm.PEMType
	}
	key, keyErr := decodeKey(keyType, f.Key, f.TPM)
	if idErr != nil || keyErr != nil {
		return pending{}, errPending
	}
	return pending{id: id, key: key, by: f.By}, nil
}

// removePending removes the record of the request in progress. After a power failure the record may exist again. That
// is harmless, because preparePending ignores it for a request with another authorization.
func (d *Directory) removePending() error {
	if err := d.disk(change{kind: remove, path: filepath.Join(d.path, pendingName)}); err != nil {
		return fmt.Errorf("remove the record of the request: %w", err)
	}
	return nil
}
