package ca

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Epoch numbers the processes that have written to a journal. A process may write as long as its epoch is not fenced.
type Epoch uint64

// Lease is how long a server may write after its last [Journal.Renew], by the clock of the store. Then another server can
// fence it.
const Lease = 3 * time.Second

// BatchID identifies a batch of intents. It is random.
type BatchID [16]byte

// NewBatchID returns a random BatchID.
func NewBatchID() BatchID {
	var id BatchID
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process if it has no randomness
	return id
}

// String formats the ID as hexadecimal.
func (id BatchID) String() string { return hex.EncodeToString(id[:]) }

// IntentItem describes one certificate that the HSM is about to sign.
type IntentItem struct {
	Ref       pki.CertRef
	Digest    []byte    // the digest to be signed; for Ed25519, the SHA-256 of the message
	IssuedAt  time.Time // to the millisecond
	NotAfter  time.Time
	Partition uint16 // of the issuing CA's CRL
}

// Intent is a batch of certificates about to be signed. Once it is durable, a BatchCommit of this process or of the
// next one accounts for each of its items, or one of another server that has fenced it.
type Intent struct {
	Batch BatchID
	Items []IntentItem
}

// Record is a signed certificate that is to be recorded as issued.
type Record struct {
	Ref      pki.CertRef
	Identity pki.SPIFFEID
	Profile  string
	KeyHash  pki.KeyHash
	// IssuedAt is the time of issue, to the millisecond. NotBefore is earlier if the profile backdates.
	IssuedAt  time.Time
	NotBefore time.Time
	NotAfter  time.Time
	Partition uint16
	DER       []byte
	RequestID pki.RequestID
	Actor     pki.Actor
	Guard     pki.Guard
	Evidence  pki.EvidenceRecord
}

// BatchCommit is the result of items of a batch. Records contains the certificates that were signed. An item without a
// record, or with a record that is refused by its guard, becomes a revoked record that was never delivered. Items of
// the batch that are not in Intent stay pending.
type BatchCommit struct {
	Intent  Intent // the items that are committed now
	Records []Record
	At      time.Time
}

// Result is the result of committing a record.
type Result struct {
	// Refusal is the [*pki.Refusal] because of which the certificate was not issued, or nil.
	Refusal error
	// Superseded is the new status of the certificate that the record's guard revoked; zero if there is none.
	Superseded pki.StatusChange
}

// Results contains one Result for each record of a BatchCommit, in order.
type Results []Result

// Journal is the durable side of issuance. The [Authority] is its only consumer and calls it from one goroutine at a
// time, except for Renew.
//
// Durability: after Write, Begin, BeginAgain or TakeOver returns nil, the changes survive a crash of the machine. After Write
// returns an error, either all of its changes were applied or none. If it recorded an intent, Applied shows which.
type Journal interface {
	Epochs
	// Write commits items and records new intents in one transaction. Each BatchCommit is of another intent. For each it
	// checks and consumes the guards of its records. It writes the certificates, the revocations of superseded
	// certificates, request IDs, log entries and never-delivered records. It removes the items from their intents,
	// which must exist. The refusal of one record does not fail the others. There is one Results per BatchCommit; they
	// are valid if the transaction was applied, so Write returns them together with an error, too. For a stale epoch
	// Write changes nothing and returns an error that wraps ErrFenced, and ErrReplaced if the server has a newer epoch.
	Write(ctx context.Context, epoch Epoch, commits []BatchCommit, intents []Intent) ([]Results, error)
	// Applied reports whether the newest Write of the epoch that was applied recorded the intent of this batch as its last
	// one. The intent may have no items. For a stale epoch Applied returns an error that wraps ErrFenced, because the
	// process that fenced it writes, too.
	Applied(ctx context.Context, epoch Epoch, batch BatchID) (bool, error)
}

// Epochs are the epochs of the servers that share a journal. Those that begin later have higher numbers. Each method refuses
// a stale epoch with an error that wraps ErrFenced, and ErrReplaced if a newer process has the name of the server. It then
// changes nothing.
type Epochs interface {
	// Begin opens the first epoch of a process, with a lease. It replaces older processes of the same server, and fences the
	// epochs of other servers whose lease has ended. The intents that they left pending belong to the new epoch from then
	// on. Begin returns them.
	Begin(ctx context.Context) (Epoch, []Intent, error)
	// BeginAgain opens another epoch of the process that began with the epoch process. It also fences the epochs of this
	// process, stale or not, so that it returns all intents that they left.
	BeginAgain(ctx context.Context, process Epoch) (Epoch, []Intent, error)
	// Renew extends the lease of an epoch, and reports whether the lease of another epoch has ended. It is safe for
	// concurrent use, and does not wait for the other methods. A crash of the machine may undo it.
	Renew(ctx context.Context, epoch Epoch) (hasEnded bool, err error)
	// TakeOver fences the epochs of other servers whose lease has ended. The intents that they left pending belong to epoch
	// from then on. TakeOver returns them. After another error than ErrFenced, they may belong to epoch nevertheless, and
	// only BeginAgain returns them.
	TakeOver(ctx context.Context, epoch Epoch) ([]Intent, error)
}

// InstalledCA is a CA certificate installed by a ceremony.
type InstalledCA struct {
	Certificate []byte // DER
	// Key is the label of the CA's key in the HSM. It is empty for a CA with its key elsewhere, such as the root.
	Key   string
	At    time.Time
	State InstallationState // ignored by Install
}

// InstallationState is the state of an installed CA.
type InstallationState uint8

// An active CA with a key issues certificates if it was installed last. A retired CA issues only certificates for its
// own OCSP delegate, and its certificates' statuses are still served. A retired root is not in the trust bundle. A
// removed CA's statuses are not served; its certificates stay on record.
const (
	Active InstallationState = iota + 1
	Retired
	Removed
)

// Installations stores the CA certificates of a trust domain. Its methods are safe for concurrent use.
type Installations interface {
	// Install durably records a CA certificate. Installing the same certificate again succeeds without a change. Of two
	// certificates with the same subject and key, the one installed later replaces the other. A removed CA cannot be
	// installed again.
	Install(ctx context.Context, c InstalledCA, by pki.Actor) error
	// Installed returns the CA certificates in order of installation, including removed ones.
	Installed(ctx context.Context) ([]InstalledCA, error)
	// Retire durably retires an issuing CA or a root. Repeating it succeeds without a change. Retire is refused unless
	// another issuing CA is active and has not expired. For a root, that CA must be under another root, and no active
	// issuing CA may be under this one. If certificates under the root are neither expired nor revoked, confirm must be
	// their number, within one percent. Certificates of OCSP delegates do not count.
	Retire(ctx context.Context, id pki.IssuerID, at time.Time, confirm int, by pki.Actor) error
	// Remove durably removes a CA and its CRLs. Repeating it succeeds without a change. Remove is refused before the
	// CA's certificate has expired. As an exception, a CA that is retired or has no key here can be removed once all
	// certificates that it issued have expired. Certificates of its OCSP delegate do not count.
	Remove(ctx context.Context, id pki.IssuerID, at time.Time, by pki.Actor) error
}

// CrossCertificate is a certificate that one installed root signed for the subject and the key of another.
type CrossCertificate struct {
	Certificate []byte // DER
	At          time.Time
}

// CrossCertificates stores the cross-certificates of a trust domain. Its methods are safe for concurrent use.
type CrossCertificates interface {
	// InstallCross durably records a cross-certificate. Installing the same certificate again succeeds without a
	// change. Of two certificates with the same signer, subject and key, the one installed later replaces the other.
	// InstallCross is refused unless both roots are installed and were not removed.
	InstallCross(ctx context.Context, c CrossCertificate, by pki.Actor) error
	// CrossCertificates returns the cross-certificates in order of installation.
	CrossCertificates(ctx context.Context) ([]CrossCertificate, error)
}
