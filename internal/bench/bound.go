package bench

import (
	"context"
	"time"
)

// A caller that waits for each certificate before it requests the next waits at least for these operations. They cannot
// overlap: each needs the result of an earlier one.
const (
	// durableWrites is the number of durable writes. The intent is durable before the HSM signs, and the record before
	// the certificate is delivered. It is 1 if the serial number was reserved before the request.
	durableWrites = 2
	// verifications is the number of verified P-256 signatures: the request's, and the certificate's own.
	verifications = 2
)

// boundFields are the fields that a measurement with one caller has in addition. The first four are the parts of the
// bound.
var boundFields = []string{
	"bound_write_us", "bound_signature_us", "bound_verification_us", "bound_rpc_us", "p50_bound_us", "p50_bound_ratio",
}

// measureBound measures the latencies that p50_ms is composed of at least. Those of bare RPCs are measured before.
func measureBound(ctx context.Context, r *issueRig, d time.Duration, values map[string]float64) error {
	l, err := r.floor.Latency(ctx, d)
	if err != nil {
		return err
	}
	write, sign, verify := micros(l.Write), micros(l.Sign), micros(l.Verify)
	bound := durableWrites*write + sign + verifications*verify + values["bound_rpc_us"]
	values["bound_write_us"], values["bound_signature_us"], values["bound_verification_us"] = write, sign, verify
	values["p50_bound_us"], values["p50_bound_ratio"] = bound, 1000*values["p50_ms"]/bound
	return nil
}
