package ra

import (
	"context"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

// NoteEvidence writes a refused enrollment to the log if the server refuses it before it calls Enroll.
func (r *Registrar) NoteEvidence(ctx context.Context, e EnrollRequest, err error) error {
	claims, _ := r.revision().identify(ctx, e, pki.KeyHash{}, r.clock()) // empty if the evidence is not valid
	a := attempted(e, claims)
	return r.auditor.RecordEvidence(ctx, a.by, a.id, a.evidence, err)
}

// attempt is what the log says about a refused enrollment. The identity and the actor are zero if they are not known.
type attempt struct {
	id       pki.SPIFFEID
	by       pki.Actor
	evidence pki.EvidenceRecord
}

// attempted returns the attempt of a request whose evidence proved the claims. It has the digests of all evidence,
// whether it is valid or not.
func attempted(e EnrollRequest, claims Claims) attempt {
	a := attempt{by: claims.actor()}
	a.id, _ = claims.named()
	a.evidence.Subject = claims.subject()
	for i, piece := range e.Evidence {
		if i < maxEvidence && slices.Contains(pki.EvidenceKinds(), piece.Kind) {
			a.evidence.Pieces = append(a.evidence.Pieces, pki.DigestEvidence(piece))
		}
	}
	return a
}
