package restoring

import (
	"context"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/translog"
)

// Merge records the revocations of a CRL, and returns the changes: those of certificates on record, and those of unknown ones.
// It can be repeated.
func (s *Store) Merge(ctx context.Context, m rules.Merge) (known, unknown []pki.StatusChange, err error) {
	for chunk := range slices.Chunk(m.Entries, rules.MaxChanges) {
		var entries []translog.Entry
		err := s.write(ctx, "merge a CRL", func(ctx context.Context, tx *engine.Tx) (err error) {
			entries, err = m.Log(chunk, func(ref pki.CertRef) (rules.Certificate, error) {
				c, err := bulk.ReadCertificate(ctx, tx, ref)
				return c.Certificate, err
			})
			for _, e := range entries {
				if err == nil {
					err = s.record(ctx, tx, e)
				}
			}
			return err
		})
		if err != nil {
			return known, unknown, err
		}
		for _, e := range entries {
			if e.Action == translog.CertificateAbandoned {
				unknown = append(unknown, e.Changes...)
			} else {
				known = append(known, e.Changes...)
			}
		}
	}
	return known, unknown, nil
}
