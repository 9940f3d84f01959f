package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// elsewherePoll is the pause between two OCSP requests about a certificate that another server has revoked, and
// maxElsewhere how long they go on.
const (
	elsewherePoll = 2 * time.Millisecond
	maxElsewhere  = 30 * time.Second
)

// revocations revokes certificates one after the other at the first server for d, and measures how long after the response
// the second server's OCSP says so. Names of values begin with prefix.
func (r *replicasRig) revocations(ctx context.Context, prefix string, d time.Duration, values map[string]float64) error {
	issuer, err := file.ReadCertificate(r.devs[0].IssuingFile())
	if err != nil {
		return err
	}
	operator, err := r.operator(0)
	if err != nil {
		return err
	}
	c := &caller{pair: operator, devices: &deviceSupply{prefix: fmt.Sprintf("device/revoked-%d", time.Now().UnixNano())}}
	if err := c.open(ctx); err != nil {
		return err
	}
	var took []time.Duration
	for begin := time.Now(); len(took) == 0 || time.Since(begin) < d; {
		one, err := r.revocation(ctx, c, issuer)
		if err != nil {
			return errors.Join(err, c.close())
		}
		took = append(took, one)
	}
	slices.Sort(took)
	l := load{latencies: took}
	values[prefix+"revoked_elsewhere_p50_ms"], values[prefix+"revoked_elsewhere_p99_ms"] = l.quantile(0.5), l.quantile(0.99)
	values[prefix+"revoked_elsewhere_max_ms"] = l.quantile(1)
	return c.close()
}

// revocation issues and revokes a certificate at the first server. It returns how long after that the second one says good.
func (r *replicasRig) revocation(ctx context.Context, c *caller, issuer *x509.Certificate) (time.Duration, error) {
	id, err := newRequestID()
	if err != nil {
		return 0, err
	}
	device, err := c.devices.next()
	if err != nil {
		return 0, err
	}
	resp, err := c.requestOne(ctx, requestFor(id, device))
	if err != nil {
		return 0, err
	}
	certificate, err := x509.ParseCertificate(resp.GetCertificate())
	if err != nil {
		return 0, errors.Join(err, fmt.Errorf("a request failed: %s", resp.GetError().GetMessage()))
	}
	request, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: certificate.SerialNumber}, issuer, nil)
	if err != nil {
		return 0, err
	}
	if err := r.untilStatus(ctx, request, issuer, ocsp.Good); err != nil {
		return 0, err
	}
	_, err = brevetv1.NewRevocationServiceClient(c.conn).RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{
		Serial: certificate.SerialNumber.FillBytes(make([]byte, pki.SerialSize)),
		Reason: brevetv1.RevocationReason_REVOCATION_REASON_PRIVILEGE_WITHDRAWN,
	})
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	err = r.untilStatus(ctx, request, issuer, ocsp.Revoked)
	return time.Since(begin), err
}

// untilStatus returns when the second server's OCSP reports a status.
func (r *replicasRig) untilStatus(ctx context.Context, request []byte, issuer *x509.Certificate, want int) error {
	for begin := time.Now(); ; {
		status, err := r.status(ctx, request, issuer)
		if err == nil && status == want {
			return nil
		}
		if time.Since(begin) > maxElsewhere {
			return errors.Join(err, fmt.Errorf("the second server reports the OCSP status %d instead of %d (0 good, 1 revoked, 2 unknown) after %s", status, want, maxElsewhere))
		}
		if err := rest(ctx, elsewherePoll); err != nil {
			return err
		}
	}
}

func (r *replicasRig) status(ctx context.Context, request []byte, issuer *x509.Certificate) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.devs[1].HTTP+"/ocsp", bytes.NewReader(request))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	der, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return 0, err
	}
	parsed, err := ocsp.ParseResponse(der, issuer)
	if err != nil {
		return 0, err
	}
	return parsed.Status, nil
}
