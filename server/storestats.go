package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/store/retention"
)

// censusPatience bounds how long counting may take.
const censusPatience = 10 * time.Second

// stores serves brevet.v1.StoreService.
type stores struct {
	brevetv1.UnimplementedStoreServiceServer
	records retention.Store
	sweeper *retention.Sweeper
	disk    Disk
	clock   func() time.Time
}

// GetStats serves the RPC of that name in brevet.v1.StoreService.
func (s *stores) GetStats(ctx context.Context, _ *brevetv1.GetStatsRequest) (*brevetv1.GetStatsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, censusPatience)
	defer cancel()
	before, last := s.sweeper.Before(), s.sweeper.Last()
	c, err := s.records.Census(ctx, s.clock(), before)
	if err != nil {
		return nil, err
	}
	sizes := s.disk.Sizes()
	resp := &brevetv1.GetStatsResponse{
		Certificates: &brevetv1.CertificateStats{
			Good: countOut(c.Good), OnHold: countOut(c.OnHold), Revoked: countOut(c.Revoked), Unreleased: countOut(c.Unreleased),
			Unexpired: countOut(c.Unexpired), Expired: countOut(c.Expired), Waiting: countOut(c.Waiting),
		},
		Identities: &brevetv1.IdentityStats{
			Registered: countOut(c.Identities[pki.Registered]), Enrolled: countOut(c.Identities[pki.Enrolled]),
			Suspended: countOut(c.Identities[pki.Suspended]), Retired: countOut(c.Identities[pki.Retired]),
		},
		Tokens: &brevetv1.TokenStats{Open: countOut(c.OpenTokens), Spent: countOut(c.SpentTokens), Expired: countOut(c.ExpiredTokens)},
		Keys:   &brevetv1.KeyStats{Known: countOut(c.Keys), Compromised: countOut(c.CompromisedKeys)}, LogEntries: c.LogEntries,
		Files: &brevetv1.FileStats{
			Store: uint64(sizes["store"]), Wal: uint64(sizes["wal"]), Archive: uint64(sizes["archive"]), Free: c.FreeBytes, //nolint:gosec // sizes
		},
		Retention: &brevetv1.RetentionStats{
			Retention: durationpb.New(s.sweeper.Retention()), LeavesBefore: timestamppb.New(before),
			LastCertificates: uint64(last.Expired.Certificates), LastTokens: uint64(last.Expired.Tokens), LastKeys: uint64(last.Expired.Keys), //nolint:gosec // counts
		},
	}
	if !c.OldestNotAfter.IsZero() {
		resp.Certificates.OldestNotAfter = timestamppb.New(c.OldestNotAfter)
	}
	if !last.Ended.IsZero() {
		resp.Retention.LastSweep = timestamppb.New(last.Ended)
	}
	return resp, nil
}

func countOut(c retention.Count) *brevetv1.Count {
	return &brevetv1.Count{Value: c.N, AtLeast: c.AtLeast}
}
