package ca

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Epoch numbers the processes that have written to one journal. Only the newest may write.
type Epoch uint64

// BatchID names a batch of intents; it is drawn at random.
type BatchID [16]byte

// NewBatchID draws a BatchID.
func NewBatchID() BatchID {
	var id BatchID
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process where there is no randomness
	return id
}

// String formats the ID as hexadecimal.
func (id BatchID) String() string { return hex.EncodeToString(id[:]) }

// IntentItem announces one certificate that the token is about to sign.
type IntentItem struct {
	Ref       pki.CertRef
	Digest    []byte // what the token is asked to sign; for Ed25519, which signs the message itself, its SHA-256
	NotAfter  time.Time
	Partition uint16 // of the issuer's CRL
}

// Intent is a batch of announced signatures. Once it is durable, each of them is accounted for: by the
// Settlement of the process that wrote it, or of the next one.
type Intent struct {
	Batch BatchID
	Items []IntentItem
}

// Record is a signed certificate on its way to become an issued one.
type Record struct {
	Ref       pki.CertRef
	Identity  pki.SPIFFEID
	Profile   string
	KeyHash   pki.KeyHash
	NotBefore time.Time
	NotAfter  time.Time
	Partition uint16
	DER       []byte
	RequestID pki.RequestID
	Actor     pki.Actor
	Guard     pki.Guard
}

// BatchCommit says what became of items of a batch: the certificates that were signed. Every item of the intent here
// without a record here, or whose record meets a guard, becomes a revoked record that was never released. The items of the
// batch that are not named stay announced.
type BatchCommit struct {
	Intent  Intent // the items that are settled now
	Records []Record
	At      time.Time
}

// Result is what became of a record.
type Result struct {
	// Refusal is the *pki.Refusal that kept it from being issued; nil where it was.
	Refusal error
	// Superseded is the new status of the certificate that its guard has revoked; zero for none.
	Superseded pki.StatusChange
}

// Results holds one for each record of a settlement, in its order.
type Results []Result

// BatchState is what a journal knows of a batch.
type BatchState uint8

// A batch is absent before its intent is durable, pending until the last of its items is settled, and settled for ever. One
// without items is settled from its beginning.
const (
	BatchAbsent BatchState = iota + 1
	BatchPending
	BatchCommitted
)

// Journal is the durable side of issuance. The Authority is its only consumer and calls it from one goroutine at a
// time.
//
// Durability: when Write or Begin has returned without an error, what it wrote survives a crash of the machine. When
// Write has returned an error, it applied as a whole or not at all, and only State can say which.
type Journal interface {
	// Begin opens a new epoch, which fences all earlier ones, and returns the intents that they left pending.
	Begin(ctx context.Context) (Epoch, []Intent, error)
	// Write settles items and announces intents in one transaction: for each settlement, with its records' guards
	// checked again and consumed, the certificates and the revocation of those that they supersede, request IDs, log entries, the never-released records, and the
	// removal of its items from their intent, which have to be there. One record's refusal does not fail the others. The verdicts, one for each
	// settlement, hold if the transaction applied, so they are returned beside an error too. A stale epoch gets an
	// error that wraps ErrFenced, and nothing is written.
	Write(ctx context.Context, epoch Epoch, settle []BatchCommit, announce []Intent) ([]Results, error)
	// State reads back what became of batches, in their order. A stale epoch gets an error that wraps ErrFenced: its
	// batches may have been settled by the process that fenced it, which says nothing about what it wrote itself.
	State(ctx context.Context, epoch Epoch, batches []BatchID) ([]BatchState, error)
}

// InstalledCA is a CA certificate that a ceremony installed.
type InstalledCA struct {
	Certificate []byte // DER
	// Key is the label of its key in an issuing token; empty for a CA whose key is elsewhere, such as the root.
	Key   string
	At    time.Time
	State InstallationState // Install takes no notice of it
}

// InstallationState is what an installed CA is still used for.
type InstallationState uint8

// An active CA issues certificates, if it has a key and none was installed later. A retired one issues certificates for
// its own OCSP delegate alone, and is answered for. A removed one is not answered for, and its certificates stay on record.
const (
	Active InstallationState = iota + 1
	Retired
	Removed
)

// Installations keeps the CA certificates of a trust domain. Methods are safe for concurrent use.
type Installations interface {
	// Install records a CA certificate, durably; installing the same one again succeeds and changes nothing. Of two
	// certificates with the same subject and key, the one that is installed later takes the place of the other. A removed CA
	// is not installed again.
	Install(ctx context.Context, c InstalledCA, by pki.Actor) error
	// Installed returns the CA certificates in the order of their installation, removed ones included.
	Installed(ctx context.Context) ([]InstalledCA, error)
	// Retire retires an issuing CA, durably; repeating it succeeds and changes nothing. It is refused unless another issuing
	// CA is active and has not expired.
	Retire(ctx context.Context, id pki.IssuerID, at time.Time, by pki.Actor) error
	// Remove removes a CA with its CRLs, durably; repeating it succeeds and changes nothing. It is refused while the CA's
	// certificate has not expired, unless the CA is retired, or has no key here, and all that it issued has expired. Its OCSP
	// delegate's certificates do not count.
	Remove(ctx context.Context, id pki.IssuerID, at time.Time, by pki.Actor) error
}
