package fill

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// revokedEach is the number of certificates of one identity, which are revoked together.
const revokedEach = 4000

// standInSize is the size in bytes of the placeholder for a certificate's DER. CRLs do not depend on the DER.
const standInSize = 32

// Revoked fills a new store with n revoked certificates. It writes everything that issuing and revoking write, and
// then compacts the index of revoked certificates, as the server does.
func Revoked(ctx context.Context, path string, issuer pki.IssuerID, n int, logf func(string, ...any)) (err error) {
	db, err := sqlite.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	epoch, _, err := db.CA().Begin(ctx)
	if err != nil {
		return err
	}
	begun := time.Now().Add(-time.Hour).Truncate(time.Second)
	for done := 0; done < n; {
		id, err := pki.SPIFFEIDIn("bench.example", fmt.Sprintf("revoked/%d", done))
		if err != nil {
			return err
		}
		device := ra.Registration{Identity: ra.Identity{ID: id, Kind: pki.Device, Profile: "device", CreatedAt: begun}}
		if _, err := db.RA().CreateIdentity(ctx, device, Actor); err != nil {
			return err
		}
		part := min(revokedEach, n-done)
		s := ca.BatchCommit{Intent: ca.Intent{Batch: ca.NewBatchID()}, At: begun}
		for range part {
			r, err := standIn(id, issuer, begun.Add(time.Duration(done)*time.Microsecond))
			if err != nil {
				return err
			}
			digest := sha256.Sum256(r.DER)
			s.Intent.Items = append(s.Intent.Items, ca.IntentItem{Ref: r.Ref, Digest: digest[:], IssuedAt: r.IssuedAt, NotAfter: r.NotAfter})
			s.Records = append(s.Records, r)
		}
		if _, err := db.CA().Write(ctx, epoch, nil, []ca.Intent{s.Intent}); err != nil {
			return err
		}
		results, err := db.CA().Write(ctx, epoch, []ca.BatchCommit{s}, nil)
		if err != nil {
			return err
		}
		for _, v := range results[0] {
			if v.Refusal != nil {
				return v.Refusal
			}
		}
		at := begun.Add(time.Duration(done) * time.Millisecond / 10)
		out, err := db.Revocation().Apply(ctx, revocation.Change{
			Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Identity: id, Actor: Actor, At: at,
		})
		if err != nil {
			return err
		}
		for bulk := (revocation.BulkRevocation{ID: out.BulkRevocation}); bulk.ID != 0 && !bulk.Done; { // a revocation of many certificates is applied to the records in steps
			if _, bulk, err = db.Revocation().ApplyBulk(ctx, out.BulkRevocation, part, at); err != nil {
				return err
			}
		}
		if done/100_000 != (done+part)/100_000 {
			logf("%d certificates are revoked", done+part)
		}
		done += part
	}
	return db.Revocation().Compact(ctx, issuer)
}

// standIn returns the record of a certificate with a placeholder instead of its DER.
func standIn(id pki.SPIFFEID, issuer pki.IssuerID, at time.Time) (ca.Record, error) {
	var noise [pki.SerialRandomSize + standInSize + 32]byte
	_, _ = rand.Read(noise[:]) // never fails
	serial, err := pki.MakeSerial(at, [pki.SerialRandomSize]byte(noise[:]))
	if err != nil {
		return ca.Record{}, err
	}
	request, err := newRequestID()
	key := pki.HashSPKI(noise[:])
	return ca.Record{
		Ref: pki.CertRef{Issuer: issuer, Serial: serial}, Identity: id, Profile: "device", KeyHash: key, IssuedAt: at.UTC().Truncate(time.Millisecond), NotBefore: at, NotAfter: at.Add(30 * 24 * time.Hour).Truncate(time.Second),
		DER: noise[pki.SerialRandomSize : pki.SerialRandomSize+standInSize], RequestID: request, Actor: Actor, Guard: pki.Guard{Key: key},
	}, err
}

func newRequestID() (pki.RequestID, error) {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return pki.RequestIDFromBytes(b[:])
}
