package grpcapi

import (
	"context"
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/revisions"
)

// Limits of the requests to PolicyService, in bytes.
const (
	maxDocument = 192 << 10
	maxFacts    = 64 << 10
)

// PolicyKeeper applies and explains the policy: a *revisions.Revisions. It is safe for concurrent use.
type PolicyKeeper interface {
	Apply(ctx context.Context, c ra.PolicyChange) (ra.PolicyRevision, error)
	Explain(facts []byte) (revisions.Explanation, error)
	ExplainRefused(request string) (revisions.Explanation, error)
}

// Policies serves brevet.v1.PolicyService.
type Policies struct {
	brevetv1.UnimplementedPolicyServiceServer
	Revisions PolicyKeeper
	Records   ra.PolicyStore
	Clock     func() time.Time
}

// ApplyPolicy serves the RPC of that name in brevet.v1.PolicyService.
func (s *Policies) ApplyPolicy(ctx context.Context, req *brevetv1.ApplyPolicyRequest) (*brevetv1.ApplyPolicyResponse, error) {
	if n := len(req.GetDocument()); n == 0 || n > maxDocument {
		return nil, pki.Refuse(pki.RulePolicyInvalid, "send a document of 192 KiB at most", "the document has %d bytes", n)
	}
	based, err := revisionIn(req.GetBasedRevision())
	if err != nil {
		return nil, err
	}
	if err := pki.CheckText("the comment", req.GetComment()); err != nil {
		return nil, err
	}
	p, err := s.Revisions.Apply(ctx, ra.PolicyChange{
		Document: req.GetDocument(), Based: based, Comment: req.GetComment(), By: callerOf(ctx).Actor(), At: s.Clock(),
	})
	if err != nil {
		return nil, err
	}
	return &brevetv1.ApplyPolicyResponse{Policy: policyOut(p)}, nil
}

// GetPolicy serves the RPC of that name in brevet.v1.PolicyService.
func (s *Policies) GetPolicy(ctx context.Context, req *brevetv1.GetPolicyRequest) (*brevetv1.GetPolicyResponse, error) {
	revision, err := revisionIn(req.GetRevision())
	if err != nil {
		return nil, err
	}
	p, err := s.Records.Policy(ctx, revision)
	if err != nil {
		return nil, err
	}
	return &brevetv1.GetPolicyResponse{Policy: policyOut(p)}, nil
}

// ListPolicies serves the RPC of that name in brevet.v1.PolicyService.
func (s *Policies) ListPolicies(ctx context.Context, req *brevetv1.ListPoliciesRequest) (*brevetv1.ListPoliciesResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, func(key []byte) (uint64, error) {
		if len(key) != 8 {
			return 0, errPageToken
		}
		return binary.BigEndian.Uint64(key), nil
	})
	if err != nil {
		return nil, err
	}
	list, next, err := s.Records.Policies(ctx, after, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListPoliciesResponse{}
	for _, p := range list {
		resp.Policies = append(resp.Policies, policyOut(p))
	}
	if next != 0 {
		resp.NextPageToken = pageToken(req, binary.BigEndian.AppendUint64(nil, next))
	}
	return resp, nil
}

// ExplainPolicy serves the RPC of that name in brevet.v1.PolicyService.
func (s *Policies) ExplainPolicy(_ context.Context, req *brevetv1.ExplainPolicyRequest) (*brevetv1.ExplainPolicyResponse, error) {
	var e revisions.Explanation
	var err error
	if n := len(req.GetFacts()); (n == 0) == (req.GetRequest() == "") || n > maxFacts {
		return nil, pki.Refuse(pki.RuleRequest, "send facts of 64 KiB at most, or the actor or the digest of a refused request",
			"the facts have %d bytes", n)
	}
	if req.GetRequest() != "" {
		e, err = s.Revisions.ExplainRefused(req.GetRequest())
	} else {
		e, err = s.Revisions.Explain(req.GetFacts())
	}
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ExplainPolicyResponse{Revision: int64(e.Revision), Evidence: e.Evidence} //nolint:gosec // a small number
	if e.RefusedBy != 0 {
		resp.RefusedRevision, resp.RefuseTime = int64(e.RefusedBy), timestamppb.New(e.RefusedAt) //nolint:gosec // a small number
	}
	for _, t := range e.Trials {
		resp.Rules = append(resp.Rules, &brevetv1.RuleExplanation{Rule: t.Rule, Matches: t.Outcome == policy.Matched, Explanation: t.String()})
	}
	return resp, nil
}

func revisionIn(n int64) (uint64, error) {
	if n < 0 {
		return 0, pki.Refuse(pki.RuleRequest, "send a revision from ListPolicies, or 0", "the revision is %d", n)
	}
	return uint64(n), nil
}

func policyOut(p ra.PolicyRevision) *brevetv1.Policy {
	return &brevetv1.Policy{
		Revision: int64(p.Revision), Sha256: p.SHA256[:], AppliedBy: p.AppliedBy.String(), ApplyTime: timestamppb.New(p.AppliedAt), //nolint:gosec // a small number
		Comment: p.Comment, Document: p.Document,
	}
}
