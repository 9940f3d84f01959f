package acme

import (
	"context"
	"encoding/base64"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/acme/jws"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// Limits of the parts of a certificate's identifier in bytes. RFC 5280 §4.1.2.2 limits serial numbers to 20 bytes.
const (
	maxKeyID = 64
	maxCert  = 200 // in the encoding
)

// minWindow is the minimum length of a renewal window in a response. The times have whole seconds, and clients ignore a
// window that is too short to choose a second in (RFC 9773 §4.2). The windows of a rotation over seconds are shorter.
const minWindow = 2 * time.Second

// parseCertID parses the identifier of a certificate (RFC 9773 §4.1): the key identifier of its issuer and its serial
// number, both in base64url. The serial number is the content of an INTEGER in DER, with a leading zero byte where DER
// has one.
func parseCertID(text string) (keyID []byte, serial pki.Serial, err error) {
	errForm := errors.New("is not of the form base64url(key identifier).base64url(serial number)")
	first, second, found := strings.Cut(text, ".")
	if !found || len(text) > maxCert {
		return nil, serial, errForm
	}
	keyID, errKey := jws.Decode(first)
	number, errNumber := jws.Decode(second)
	if errKey != nil || errNumber != nil || len(keyID) == 0 || len(keyID) > maxKeyID || len(number) == 0 {
		return nil, serial, errForm
	}
	if number[0]&0x80 != 0 || len(number) > 1 && number[0] == 0 && number[1]&0x80 == 0 {
		return nil, serial, errors.New("has a serial number that is not positive, or not in DER")
	}
	serial, err = pki.SerialFromInt(new(big.Int).SetBytes(number))
	return keyID, serial, err
}

// certificateOf returns the reference to the certificate with an identifier of RFC 9773.
func (d *Door) certificateOf(certID string) (pki.CertRef, error) {
	keyID, serial, err := parseCertID(certID)
	if err != nil {
		return pki.CertRef{}, pki.Refuse(pki.RuleRequest, "make the identifier as RFC 9773 section 4.1 describes",
			"the identifier of the certificate %v", err)
	}
	issuer, ok := d.issuers[string(keyID)]
	if !ok {
		return pki.CertRef{}, pki.Refuse(pki.RuleNotFound, "ask the CA that issued the certificate", "no CA of this server has issued the certificate")
	}
	return pki.CertRef{Issuer: issuer, Serial: serial}, nil
}

// certID returns the identifier of RFC 9773 for a certificate. It returns an empty text for the zero value, and for a
// certificate of an unknown CA.
func (d *Door) certID(ref pki.CertRef) string {
	for keyID, issuer := range d.issuers {
		if issuer == ref.Issuer && !ref.IsZero() {
			number := new(big.Int).SetBytes(ref.Serial.Bytes()).Bytes()
			if number[0]&0x80 != 0 {
				number = append([]byte{0}, number...)
			}
			return base64.RawURLEncoding.EncodeToString([]byte(keyID)) + "." + base64.RawURLEncoding.EncodeToString(number)
		}
	}
	return ""
}

// renewalInfo serves renewalInfo (RFC 9773 §4).
func (d *Door) renewalInfo(_ context.Context, r *frontdoor.Request) (frontdoor.Response, error) {
	ref, err := d.certificateOf(r.PathValue("certificate"))
	if err != nil {
		return frontdoor.Response{}, err
	}
	start, end, retryAfter, err := d.config.Renewals.RenewalInfo(ref)
	if err != nil {
		return frontdoor.Response{}, err
	}
	if earliest := start.Add(minWindow); end.Before(earliest) {
		end = earliest
	}
	type window struct {
		Start string `json:"start"`
		End   string `json:"end"`
	}
	resp, err := d.object(http.StatusOK, struct {
		Window window `json:"suggestedWindow"`
	}{window{stamp(start), stamp(end)}})
	if err != nil {
		return resp, err
	}
	setRetryAfter(resp.Header, retryAfter)
	return resp, nil
}
