package crl

import (
	"context"
	"log/slog"
	"os"
	"time"
)

// Recall publishes the recorded CRLs, like Run at its start.
func Recall(ctx context.Context, u *Updater) error {
	recorded, err := u.store.CRLs(ctx)
	if err == nil {
		u.publishAll(recorded)
	}
	return err
}

// EncodeEntries encodes the entries of a CRL with the given thisUpdate.
func EncodeEntries(thisUpdate time.Time, entries []Entry) (der []byte, size int64) {
	e := newEntryEncoder(thisUpdate)
	for n := range entries {
		size += e.size(&entries[n])
		der = e.append(der, &entries[n])
	}
	return der, size
}

// SignShifted signs a CRL whose reserved header is one byte longer than necessary, like that of a CRL with a short
// signature.
func SignShifted(path string, of Issuer, tbs []byte) (CRL, error) {
	scheme, err := schemeOf(of.Certificate.PublicKey)
	if err != nil {
		return CRL{}, err
	}
	h := scheme.hash.New()
	h.Write(tbs)
	b := &builder{path: path, reserved: headerSize(int64(len(tbs)+128)) + 1, tbs: int64(len(tbs)), digest: h.Sum(nil)}
	if err := os.WriteFile(path, append(make([]byte, b.reserved), tbs...), 0o600); err != nil {
		return CRL{}, err
	}
	err = b.sign(&issuer{Issuer: of, scheme: scheme})
	return b.crl, err
}

// HoldDirectory makes each publication to a directory call hold first. It simulates a file system that does not
// respond.
func HoldDirectory(u *Updater, path string, hold func()) {
	for _, m := range u.mirrors {
		if publish := m.publish; m.path == path {
			m.publish = func(ctx context.Context, crls []CRL, log *slog.Logger) ([]CRL, error) {
				hold()
				return publish(ctx, crls, log)
			}
		}
	}
}

// PutFull publishes and records a new full CRL, and copies it to a directory.
func PutFull(u *Updater, path string) error {
	if err := u.PublishNow(context.Background()); err != nil {
		return err
	}
	for _, m := range u.mirrors {
		if m.path == path {
			_, err := m.publish(context.Background(), m.queued(), u.log)
			return err
		}
	}
	return nil
}
