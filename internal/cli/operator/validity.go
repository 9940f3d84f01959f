package operator

import (
	"context"
	"fmt"
	"io"
	"time"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// agentWait is the longest delay after which an agent retries a refused renewal.
const agentWait = time.Hour

// validity holds the number of certificates of one identity that are neither revoked nor expired.
type validity struct {
	unexpired int64
	ending    int64     // number of these that may expire before the agent's next try
	until     time.Time // when the last unexpired certificate expires
}

// validityOf counts the unexpired certificates of an identity.
func validityOf(ctx context.Context, c brevetv1.CertificateServiceClient, identity string, now time.Time) (validity, error) {
	var v validity
	for req := certificatesOf(identity); ; {
		resp, err := c.ListCertificates(ctx, req)
		if err != nil {
			return v, err
		}
		for _, certificate := range resp.GetCertificates() {
			v.add(certificate, now)
		}
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return v, nil
		}
	}
}

func (v *validity) add(c *brevetv1.Certificate, now time.Time) {
	end := c.GetNotAfter().AsTime()
	if c.GetState() == brevetv1.CertificateState_CERTIFICATE_STATE_REVOKED || end.Before(now) {
		return
	}
	v.unexpired++
	if end.Sub(now) < min(agentWait, end.Sub(c.GetNotBefore().AsTime())/4) {
		v.ending++
	}
	if end.After(v.until) {
		v.until = end
	}
}

// explainSuspension explains until when the operator can resume the identity without a new token.
func explainSuspension(out io.Writer, id string, v validity) {
	if v.unexpired == 0 {
		fmt.Fprintf(out, "%s has no certificate that is valid: once resumed, it needs a new token (brevet token create %s --replace --out FILE).\n", id, id)
		return
	}
	fmt.Fprintf(out, "%s on hold, %d about to expire. The last expires at %s: resumed later than that, %s needs a new token (brevet token create %s --replace --out FILE).\n",
		certificates(v.unexpired), v.ending, v.until.UTC().Format(time.RFC3339), id, id)
}

// explainResumption explains until when the agent of a resumed identity can renew by itself.
func explainResumption(out io.Writer, id string, v validity) {
	if v.unexpired == 0 {
		fmt.Fprintf(out, "All certificates of %s expired or were revoked: it needs a new token (brevet token create %s --replace --out FILE).\n", id, id)
		return
	}
	fmt.Fprintf(out, "%s good again, %d about to expire. The last expires at %s: if its agent does not renew before, %s needs a new token (brevet token create %s --replace --out FILE).\n",
		certificates(v.unexpired), v.ending, v.until.UTC().Format(time.RFC3339), id, id)
}
