package grpcapi

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/store/retention"
)

// censusTimeout is the timeout for counting the records of the store.
const censusTimeout = 10 * time.Second

// Census counts the records of the store. It is safe for concurrent use.
type Census interface {
	Census(ctx context.Context, at, before time.Time) (retention.Census, error)
}

// Files returns the size in bytes of each file of the server, keyed by a name from a closed set. It is safe for
// concurrent use.
type Files interface {
	Sizes() map[string]int64
}

// Store serves brevet.v1.StoreService.
type Store struct {
	brevetv1.UnimplementedStoreServiceServer
	Records Census
	Sweeper *retention.Sweeper
	Files   Files
	Clock   func() time.Time
}

// GetStats serves the RPC of that name in brevet.v1.StoreService.
func (s *Store) GetStats(ctx context.Context, _ *brevetv1.GetStatsRequest) (*brevetv1.GetStatsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, censusTimeout)
	defer cancel()
	before, last := s.Sweeper.Before(), s.Sweeper.Last()
	c, err := s.Records.Census(ctx, s.Clock(), before)
	if err != nil {
		return nil, err
	}
	sizes := s.Files.Sizes()
	resp := &brevetv1.GetStatsResponse{
		Certificates: &brevetv1.CertificateStats{
			Good: countOut(c.Good), OnHold: countOut(c.OnHold), Revoked: countOut(c.Revoked), Undelivered: countOut(c.Unreleased),
			Unexpired: countOut(c.Unexpired), Retained: countOut(c.Expired), Removable: countOut(c.Waiting),
		},
		Identities: &brevetv1.IdentityStats{
			Registered: countOut(c.Identities[pki.Registered]), Enrolled: countOut(c.Identities[pki.Enrolled]),
			Suspended: countOut(c.Identities[pki.Suspended]), Retired: countOut(c.Identities[pki.Retired]),
		},
		Tokens: &brevetv1.TokenStats{Open: countOut(c.OpenTokens), Spent: countOut(c.SpentTokens), Expired: countOut(c.ExpiredTokens)},
		Keys:   &brevetv1.KeyStats{Known: countOut(c.Keys), Compromised: countOut(c.CompromisedKeys)}, LogEntries: int64(c.LogEntries), FreeBytes: int64(c.FreeBytes), //nolint:gosec // counts
		Retention: &brevetv1.RetentionStats{
			Retention: durationpb.New(s.Sweeper.Retention()), CutoffTime: timestamppb.New(before),
			RemovedCertificates: int64(last.Expired.Certificates), RemovedTokens: int64(last.Expired.Tokens), RemovedKeys: int64(last.Expired.Keys),
		},
	}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		resp.Files = append(resp.Files, &brevetv1.FileSize{Name: name, Bytes: sizes[name]})
	}
	if !c.OldestNotAfter.IsZero() {
		resp.Certificates.OldestNotAfter = timestamppb.New(c.OldestNotAfter)
	}
	if !last.Ended.IsZero() {
		resp.Retention.LastSweepTime = timestamppb.New(last.Ended)
	}
	return resp, nil
}

func countOut(c retention.Count) *brevetv1.Count {
	return &brevetv1.Count{Value: int64(c.N), AtLeast: c.AtLeast} //nolint:gosec // a count
}
