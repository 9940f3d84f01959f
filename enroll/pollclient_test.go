package enroll

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// windowService is a testService that also returns renewal windows.
type windowService struct {
	*testService
	info *brevetv1.GetRenewalInfoResponse
}

func (s windowService) GetRenewalInfo(context.Context, *brevetv1.GetRenewalInfoRequest) (*brevetv1.GetRenewalInfoResponse, error) {
	return s.info, nil
}

func TestClientPollsWindow(t *testing.T) {
	ca := newTestCA(t)
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	window := &brevetv1.RenewalWindow{StartTime: timestamppb.New(start), EndTime: timestamppb.New(start.Add(time.Hour))}
	for name, c := range map[string]struct {
		info *brevetv1.GetRenewalInfoResponse
		want RenewalInfo
		err  string
	}{
		"everything": {
			info: &brevetv1.GetRenewalInfoResponse{RenewalWindow: window, TrustBundleRevision: []byte{0xab}, RetryAfter: durationpb.New(time.Hour)},
			want: RenewalInfo{RenewalWindow{start, start.Add(time.Hour)}, "ab", time.Hour},
		},
		"only a window":        {info: &brevetv1.GetRenewalInfoResponse{RenewalWindow: window}, want: RenewalInfo{Window: RenewalWindow{start, start.Add(time.Hour)}}},
		"a negative interval":  {info: &brevetv1.GetRenewalInfoResponse{RenewalWindow: window, RetryAfter: durationpb.New(-time.Hour)}, want: RenewalInfo{Window: RenewalWindow{start, start.Add(time.Hour)}}},
		"no window":            {info: &brevetv1.GetRenewalInfoResponse{}, err: "holds no renewal window"},
		"a window without end": {info: &brevetv1.GetRenewalInfoResponse{RenewalWindow: &brevetv1.RenewalWindow{StartTime: window.GetStartTime()}}, err: "holds no renewal window"},
		"an invalid time":      {info: &brevetv1.GetRenewalInfoResponse{RenewalWindow: &brevetv1.RenewalWindow{StartTime: &timestamppb.Timestamp{Nanos: -1}, EndTime: window.GetEndTime()}}, err: "holds no renewal window"},
	} {
		t.Run(name, func(t *testing.T) {
			client := newTestClient(t, serve(t, windowService{&testService{ca: ca}, c.info}, ca.config(t, nil)))
			info, err := client.RenewalInfo(t.Context(), ca.pairFor(t, "device/1"))
			if info != c.want || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %+v, %v, want %+v, %q", info, err, c.want, c.err)
			}
		})
	}
}

// A server of a version without the RPC returns UNIMPLEMENTED.
func TestClientPollsOldServer(t *testing.T) {
	ca := newTestCA(t)
	client := newTestClient(t, serve(t, &testService{ca: ca}, ca.config(t, nil)))
	if _, err := client.RenewalInfo(t.Context(), ca.pairFor(t, "device/1")); err == nil || !strings.Contains(err.Error(), codes.Unimplemented.String()) {
		t.Errorf("got the error %v", err)
	}
}
