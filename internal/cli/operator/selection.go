package operator

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// selection holds the flags that select certificates, for a list or a bulk revocation.
type selection struct {
	identity, profile       string
	issuer, lineage, key    string
	label                   labels
	issuedFrom, issuedUntil string
}

// selectors lists the names of these flags.
var selectors = []string{"issuer", "identity", "lineage", "key-hash", "profile", "label", "issued-from", "issued-until"}

// selectionHelp is the paragraph about these flags in the help of a command.
const selectionHelp = `Flags select certificates; a certificate has to match all that are given. --issuer selects what an issuing CA issued,
--lineage a certificate and all that were renewed from it, --key-hash the certificates of one key (the SHA-256 of its
SubjectPublicKeyInfo), --label a label that the identity has now. --issued-from includes its moment, --issued-until does
not. A time is 2026-03-01T04:00:00Z, or 2026-03-01 for the first second of that day in UTC.`

func (s *selection) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.issuer, "issuer", "", "issuer ID of the CA, in hexadecimal")
	f.StringVar(&s.identity, "identity", "", "identity that the command is about, such as device/42")
	f.StringVar(&s.lineage, "lineage", "", "select the certificate with this serial number, and all that were renewed from it")
	f.StringVar(&s.key, "key-hash", "", "SHA-256 of a public key, in hexadecimal")
	f.StringVar(&s.profile, "profile", "", "certificate profile")
	f.Var(&s.label, "label", "label of the identity")
	f.StringVar(&s.issuedFrom, "issued-from", "", "select certificates issued at this time or later")
	f.StringVar(&s.issuedUntil, "issued-until", "", "select certificates issued before this time")
}

// given reports whether one of the flags is set.
func (s *selection) given(cmd *cobra.Command) bool {
	for _, name := range selectors {
		if cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

// read returns the selection for a request.
func (s *selection) read() (*brevetv1.CertificateSelection, error) {
	sel := &brevetv1.CertificateSelection{Identity: s.identity, Profile: s.profile}
	var err error
	if sel.Label, err = s.label.one(); err != nil {
		return nil, err
	}
	if sel.IssuerId, err = readHash("--issuer", s.issuer); err != nil {
		return nil, err
	}
	if sel.KeyHash, err = readHash("--key-hash", s.key); err != nil {
		return nil, err
	}
	if s.lineage != "" {
		if sel.LineageSerial, err = readSerial(s.lineage); err != nil {
			return nil, err
		}
	}
	var fromErr, untilErr error
	sel.IssueStartTime, fromErr = readTime("--issued-from", s.issuedFrom)
	sel.IssueEndTime, untilErr = readTime("--issued-until", s.issuedUntil)
	return sel, errors.Join(fromErr, untilErr)
}

// selectionText describes a selection in one line.
func selectionText(s *brevetv1.CertificateSelection) string {
	var parts []string
	for _, f := range []struct{ name, value string }{
		{"issuer", hex.EncodeToString(s.GetIssuerId())}, {"identity", s.GetIdentity()}, {"lineage", output.Hex(s.GetLineageSerial())},
		{"key", hex.EncodeToString(s.GetKeyHash())}, {"profile", s.GetProfile()},
	} {
		if f.value != "" {
			parts = append(parts, f.name+" "+f.value)
		}
	}
	if l := s.GetLabel(); l != nil {
		parts = append(parts, "label "+output.Pair(l.GetName(), l.GetValue()))
	}
	if s.GetIssueStartTime() != nil {
		parts = append(parts, "issued from "+s.GetIssueStartTime().AsTime().Format(time.RFC3339))
	}
	if s.GetIssueEndTime() != nil {
		parts = append(parts, "issued until "+s.GetIssueEndTime().AsTime().Format(time.RFC3339))
	}
	return strings.Join(parts, ", ")
}

// certificates returns a number of certificates as text, such as "2 certificates".
func certificates(n int64) string {
	if n == 1 {
		return "1 certificate"
	}
	return fmt.Sprintf("%d certificates", n)
}
