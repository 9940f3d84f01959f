package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/outcome"
)

// failureLog limits the log messages about failed RPCs, so that they do not fill the disk. For each RPC, ten failures
// are logged at once, and then ten per minute. The metrics count all failures. The keys are full methods.
type failureLog map[string]*rate.Sometimes

const failuresEach, failureInterval = 10, 6 * time.Second

func newFailureLog() failureLog {
	l := failureLog{unknownRPC: {First: failuresEach, Interval: failureInterval}}
	for rpc := range operations {
		l[rpc] = &rate.Sometimes{First: failuresEach, Interval: failureInterval}
	}
	return l
}

// answer returns the error that gRPC sends to the client. err is the error of the handler, and panicked is the value
// with which the handler panicked, or nil. answer also counts the RPC, and logs its failure.
func (s *Server) answer(ctx context.Context, method string, begun time.Time, panicked any, err error) (answered error) {
	rpc := rpcOf(method)
	defer func() { s.config.Meter.Call(ctx, rpc, status.Code(answered), time.Since(begun), err) }()
	if panicked != nil {
		s.config.Meter.Failure(nil)
		s.failures[rpc].Do(func() {
			s.config.Log.ErrorContext(ctx, "an RPC panicked", "method", method, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		})
		return status.Error(codes.Internal, "internal error: the server's log has the details")
	}
	if err == nil {
		return nil
	}
	st, own := statusOf(err)
	if own {
		s.config.Meter.Failure(err)
		s.failures[rpc].Do(func() { s.config.Log.ErrorContext(ctx, "an RPC failed", "method", method, "error", err) })
	}
	return st.Err()
}

// errorDomain is the domain of google.rpc.ErrorInfo.
const errorDomain = "brevet"

// statusOf maps an error to a status, and reports whether the server itself failed (own). The status has the text of a
// refusal or of a gRPC status, but not the text of any other error.
func statusOf(err error) (st *status.Status, own bool) {
	if r, ok := pki.AsRefusal(err); ok {
		return detailed(status.New(outcome.Of(r.Rule).GRPC, r.Error()), err,
			&errdetails.ErrorInfo{Reason: string(r.Rule), Domain: errorDomain},
			&brevetv1.Refusal{Rule: string(r.Rule), Detail: r.Detail, Hint: r.Hint}), false
	}
	if _, ok := status.FromError(err); ok && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return status.Convert(err), false
	}
	switch {
	case pki.IsTemporary(err):
		return detailed(status.New(codes.Unavailable, "the server cannot do this now, and its log says why: repeat the call with the same request ID after the delay"), err), true
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, "the caller gave up"), false
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, "out of time: repeat the call with the same request ID"), false
	default:
		return status.New(codes.Internal, "internal error: the server's log has the details"), true
	}
}

func detailed(st *status.Status, err error, details ...protoadapt.MessageV1) *status.Status {
	if after := pki.RetryAfter(err); after > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(after.Round(time.Millisecond))})
	}
	if with, derr := st.WithDetails(details...); derr == nil {
		return with
	}
	return st
}
