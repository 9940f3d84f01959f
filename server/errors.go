package server

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
)

var codeOf = map[pki.Class]codes.Code{
	pki.InvalidArgument: codes.InvalidArgument, pki.Unauthenticated: codes.Unauthenticated, pki.PermissionDenied: codes.PermissionDenied,
	pki.NotFound: codes.NotFound, pki.FailedPrecondition: codes.FailedPrecondition, pki.ResourceExhausted: codes.ResourceExhausted,
	pki.Unimplemented: codes.Unimplemented,
}

// lines bounds what is said of the failures of each method: ten at once, and ten a minute after them. The rest is counted
// in the metrics, so that a disk that is full is not filled by what is said of it.
type lines map[string]*rate.Sometimes

const linesEach, lineEvery = 10, 6 * time.Second

func newLines() lines {
	l := lines{"": {First: linesEach, Interval: lineEvery}} // of methods that there are not
	for method := range access {
		l[method] = &rate.Sometimes{First: linesEach, Interval: lineEvery}
	}
	return l
}

func (l lines) say(method string, it func()) {
	if _, known := l[method]; !known {
		method = ""
	}
	l[method].Do(it)
}

// answer turns what a handler returned, or panicked with, into the status that the caller sees.
func (s *Server) answer(ctx context.Context, method string, begun time.Time, panicked any, err error) (answered error) {
	defer func() { s.metrics.call(method, time.Since(begun), err, answered); traceRefusal(ctx, err) }()
	if panicked != nil {
		s.metrics.failures.Inc()
		s.lines.say(method, func() {
			s.log.ErrorContext(ctx, "a call panicked", "method", method, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		})
		return status.Error(codes.Internal, "internal error: the server's log has the details")
	}
	if err == nil {
		return nil
	}
	st, loud := statusOf(err)
	if loud && pki.IsTemporary(err) && !s.issuingToken().failed.Load() {
		s.store.note(err, s.config.Clock())
	}
	if loud {
		s.metrics.failures.Inc()
		s.lines.say(method, func() { s.log.ErrorContext(ctx, "a call failed", "method", method, "error", err) })
	}
	return st.Err()
}

// statusOf maps an error to a status, and says whether it is the server's own failure. Callers see the text of
// refusals and nothing of other errors.
func statusOf(err error) (st *status.Status, loud bool) {
	if r, ok := pki.AsRefusal(err); ok {
		code, ok := codeOf[r.Rule.Class()]
		if !ok {
			code = codes.InvalidArgument
		}
		return detailed(status.New(code, r.Error()), err,
			&brevetv1.Refusal{Rule: string(r.Rule), Detail: r.Detail, Fix: r.Hint}), false
	}
	if _, ok := status.FromError(err); ok && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return status.Convert(err), false
	}
	switch {
	case pki.IsTemporary(err):
		return detailed(status.New(codes.Unavailable, "not now: repeat the call with the same request ID after the delay"), err), true
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
