package server_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// fit reports whether a text can be shown and kept: printable ASCII, and not much of it.
func fit(text string) bool {
	return len(text) < 1200 && !strings.ContainsFunc(text, func(c rune) bool { return c < 0x20 || c > 0x7e })
}

// textFields calls each RPC of operators with a text in one of its fields.
func textFields(op *servertest.Holder) map[string]func(context.Context, string) error {
	create := func(ctx context.Context, r *brevetv1.CreateIdentityRequest) error {
		r.Kind = max(r.Kind, "device")
		r.Id = max(r.Id, "device/1")
		_, err := op.CreateIdentity(ctx, r)
		return err
	}
	return map[string]func(context.Context, string) error{
		"identity": func(ctx context.Context, s string) error {
			_, err := op.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: s, Kind: "device"})
			return err
		},
		"operator": func(ctx context.Context, s string) error {
			_, err := op.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: s, Kind: "operator"})
			return err
		},
		"kind": func(ctx context.Context, s string) error {
			_, err := op.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: "d", Kind: s})
			return err
		},
		"profile": func(ctx context.Context, s string) error {
			return create(ctx, &brevetv1.CreateIdentityRequest{Profile: s})
		},
		"DNS name": func(ctx context.Context, s string) error {
			return create(ctx, &brevetv1.CreateIdentityRequest{DnsNames: []string{s}})
		},
		"IP address": func(ctx context.Context, s string) error {
			return create(ctx, &brevetv1.CreateIdentityRequest{IpAddresses: []string{s}})
		},
		"label": func(ctx context.Context, s string) error {
			return create(ctx, &brevetv1.CreateIdentityRequest{Labels: map[string]string{s: "v"}})
		},
		"label's value": func(ctx context.Context, s string) error {
			return create(ctx, &brevetv1.CreateIdentityRequest{Labels: map[string]string{"k": s}})
		},
		"identity to find": func(ctx context.Context, s string) error {
			_, err := op.GetIdentity(ctx, &brevetv1.GetIdentityRequest{Id: s})
			return err
		},
		"identity to suspend": func(ctx context.Context, s string) error {
			_, err := op.SuspendIdentity(ctx, &brevetv1.SuspendIdentityRequest{Id: s})
			return err
		},
		"identity for a token": func(ctx context.Context, s string) error {
			_, err := op.CreateToken(ctx, &brevetv1.CreateTokenRequest{Id: s})
			return err
		},
		"page of identities": func(ctx context.Context, s string) error {
			_, err := op.ListIdentities(ctx, &brevetv1.ListIdentitiesRequest{PageToken: s})
			return err
		},
		"page of certificates": func(ctx context.Context, s string) error {
			_, err := op.ListCertificates(ctx, &brevetv1.ListCertificatesRequest{PageToken: s})
			return err
		},
		"serial": func(ctx context.Context, s string) error {
			_, err := op.GetCertificate(ctx, &brevetv1.GetCertificateRequest{Serial: s})
			return err
		},
		"issuer": func(ctx context.Context, s string) error {
			_, err := op.GetCertificate(ctx, &brevetv1.GetCertificateRequest{Serial: "01", Issuer: s})
			return err
		},
		"reason": func(ctx context.Context, s string) error {
			_, err := op.RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{Serial: servertest.Serial(op.Certificate), Reason: s})
			return err
		},
	}
}

// Characters that deceive a reader are refused in every text that an operator sends, and what is said about them, to the
// caller and in the log, is free of them.
func TestTextsThatDeceive(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	fields, before := textFields(w.Operator), len(w.Entries(t, 0))
	for _, text := range []string{
		"\x00", "device/1\x00", "\x1b[2J", "a\r\nb", "\u202e1/ecived", "dev\u0456ce/1", "br\u0435vet/server", "\u200b", "\ufeffdevice/1",
		"\U000e0041", strings.Repeat("\u202e", 60_000), "a\u0300", "\uff42revet/server",
	} {
		for name, send := range fields {
			err := send(t.Context(), text)
			if servertest.RuleOf(err) == "" {
				t.Errorf("%s %.40q: %.200v", name, text, err)
			}
			servertest.Refused(t, err, status.Code(err), servertest.RuleOf(err))
			for _, d := range status.Convert(err).Details() {
				if r, ok := d.(*brevetv1.Refusal); ok && !fit(r.GetDetail()) {
					t.Errorf("%s %.40q: the detail is %.200q", name, text, r.GetDetail())
				}
			}
		}
	}
	for _, e := range w.Entries(t, before) {
		if !fit(e.Facts["detail"]) {
			t.Errorf("the log has the detail %.200q", e.Facts["detail"])
		}
	}
}
