package backup

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// issuing is an issuing CA of a restored store.
type issuing struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuing(t *testing.T) *issuing {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Issuing"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &issuing{cert, key}
}

// list returns a full CRL without entries.
func (i *issuing) list(t *testing.T, number *big.Int) *x509.RevocationList {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: number, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
	}, i.cert, i.key)
	must(t, err)
	list, err := x509.ParseRevocationList(der)
	must(t, err)
	return list
}

// TestNumbersAfterARestore restores a store without its archive. The next CRL number must be above the time in milliseconds,
// the highest number that the store has taken or recorded, and that of the CRL that is given, whichever of them is the highest.
func TestNumbersAfterARestore(t *testing.T) {
	now := time.Now()
	small, milliseconds := big.NewInt(7), big.NewInt(now.UnixMilli())
	large := new(big.Int).Lsh(milliseconds, 20) // as from a clock that was ahead, or another CA before this one
	after := func(n *big.Int) *big.Int { return new(big.Int).Add(n, big.NewInt(1)) }
	for what, c := range map[string]struct {
		taken bool // whether the number of the store was taken, or recorded with a CRL
		store *big.Int
		given *big.Int
		want  *big.Int
	}{
		"the time":                   {true, small, small, after(milliseconds)},
		"a number that was taken":    {true, large, small, after(after(large))}, // large, and the one that was taken after it
		"a CRL on record":            {false, large, small, after(large)},
		"the CRL that is given":      {true, small, large, after(large)},
		"the newer one is given":     {false, large, after(large), after(after(large))},
		"the newer one is on record": {false, after(large), large, after(after(large))},
	} {
		t.Run(what, func(t *testing.T) {
			ctx, dir, i := t.Context(), t.TempDir(), newIssuing(t)
			db, err := sqlite.Open(ctx, filepath.Join(dir, "store.db"))
			must(t, err)
			defer db.Close()
			must(t, db.CA().Install(ctx, ca.InstalledCA{Certificate: i.cert.Raw, Key: "issuing", At: now}, pki.ActorCommand("test")))
			id := pki.IssuerOf(i.cert)
			must(t, db.Revocation().PutCRLs(ctx, []crl.CRL{crl.Imported(id, i.list(t, c.store))}, pki.ActorCommand("test"), now))
			if c.taken {
				_, err = db.Revocation().TakeNumber(ctx, id, now)
				must(t, err)
			}
			r := Restore{
				Log: db.Log(), Store: db.Restoring(), Authorities: db.CA(), Points: db.Revocation(), CRLs: []*x509.RevocationList{i.list(t, c.given)},
				List: func([]byte) error { return nil }, To: filepath.Join(dir, "new.archive"), By: pki.ActorCommand("restore"), Now: now,
				Messages: slog.New(slog.DiscardHandler),
			}
			result, err := r.Run(ctx)
			must(t, err)
			must(t, db.Restoring().Accept(ctx, result.List, pki.ActorCommand("restore"), now))
			if next, err := db.Revocation().TakeNumber(ctx, id, now); err != nil || next.Cmp(c.want) != 0 {
				t.Errorf("the next CRL number is %v, %v, want %v", next, err, c.want)
			}
		})
	}
}
