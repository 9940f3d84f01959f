package ra

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// MaxPolicy is the maximum size of the document of a policy in bytes.
const MaxPolicy = 1 << 20

// PolicyStore keeps every revision of the policy. It does not interpret the documents: the caller has checked them. Its
// methods are safe for concurrent use.
type PolicyStore interface {
	// ApplyPolicy records a document as the newest revision, with its log entry (action policy.applied), in one durable
	// transaction. If another revision than c.Based is the newest, the change is refused (rule policy.revision). If the
	// newest revision has the same document, ApplyPolicy returns it and changes nothing. A document that is empty or
	// larger than MaxPolicy is refused (rule policy.invalid).
	ApplyPolicy(ctx context.Context, c PolicyChange) (PolicyRevision, error)
	// Policy returns a revision with its document. For revision 0 it returns the newest one. If there is no such revision,
	// or a replay of the log has restored it without its document, Policy returns a [*pki.Refusal] of the class NotFound.
	Policy(ctx context.Context, revision uint64) (PolicyRevision, error)
	// Policies returns up to limit revisions without their documents, newest first. The page has revisions below after, or
	// begins with the newest one if after is 0. The second result is the revision after which the next page starts, and 0
	// if there is none.
	Policies(ctx context.Context, after uint64, limit int) ([]PolicyRevision, uint64, error)
}

// PolicyChange is a request to apply a policy.
type PolicyChange struct {
	Document []byte
	// Based is the newest revision that the author has read. It is 0 for the first policy.
	Based   uint64
	Comment string // recorded in the log
	By      pki.Actor
	At      time.Time
}

// PolicyRevision is one revision of the policy.
type PolicyRevision struct {
	Revision uint64 // from 1, without gaps
	// Document is nil in lists.
	Document  []byte
	SHA256    [32]byte // of the document
	AppliedBy pki.Actor
	AppliedAt time.Time // in whole milliseconds
	Comment   string
}
