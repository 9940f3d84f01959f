package est

import (
	"bytes"
	"encoding/base64"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// request is the body of an enrollment.
type request struct {
	der    []byte      // the CSR
	key    pki.KeyHash // of the key in the CSR; zero if the CSR is malformed, which package ra refuses
	linked bool        // the CSR names the connection
}

// read decodes the body of an enrollment. It refuses a CSR that names another connection.
func read(r *frontdoor.Request) (request, error) {
	der, err := decode(r.Content)
	if err != nil {
		return request{}, err
	}
	q := request{der: der}
	c, ok := readCSR(der)
	if !ok {
		return q, nil
	}
	q.key = pki.HashSPKI(c.spki)
	q.linked, err = checkLinking(c, r.TLS)
	return q, err
}

const hintBody = "send a CSR (PKCS #10) in DER, encoded in base64: openssl req -in CSR -outform DER | openssl base64"

// decode decodes a body in base64, with line breaks or without (RFC 8951 §3.1). It ignores white space, and refuses
// everything else that is not base64.
func decode(body []byte) ([]byte, error) {
	refuse := func(detail string) ([]byte, error) { return nil, pki.Refuse(pki.RuleESTBody, hintBody, "%s", detail) }
	text := bytes.Map(func(c rune) rune {
		if c == ' ' || c == '\t' || c == '\r' || c == '\n' {
			return -1
		}
		return c
	}, body)
	switch {
	case len(text) == 0:
		return refuse("the body is empty")
	case bytes.HasPrefix(text, []byte("-----BEGIN")):
		return refuse("the body is in PEM: leave out the lines that begin with -----")
	case bytes.HasPrefix(text, []byte("--")):
		return refuse("the body is a multipart message, and not a CSR")
	}
	der, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil {
		if body[0] == 0x30 && len(body) > 1 && body[1] >= 0x80 {
			return refuse("the body is in DER, and not encoded in base64")
		}
		return refuse("the body is not base64: it is incomplete, or something follows it")
	}
	return der, nil
}

// encode encodes a response in base64, without line breaks: strongSwan 5.9.8 cannot read them.
func encode(der []byte) []byte { return base64.StdEncoding.AppendEncode(nil, der) }
