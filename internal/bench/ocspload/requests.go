package ocspload

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/pki"
)

// nonceSize is the size of a client's nonce in bytes (RFC 9654).
const nonceSize = 32

//go:embed ocsp.lua
var wrkScript []byte

// Requests are OCSP requests of one kind, in a file from which wrk sends them unchanged.
type Requests struct {
	Name     string
	Compared bool // whether the bare handler is measured, too
	requests [][]byte
	Script   string  // path of the script of wrk
	File     string  // its argument
	Size     float64 // bytes of a response with its header, on average
	BodySize float64 // bytes of a response without its header, on average
}

// WriteRequests writes requests for the statuses of certificates of one CA: by GET (RFC 6960 appendix A.1), by POST,
// and by POST with a nonce.
func WriteRequests(dir string, issuer *x509.Certificate, refs []pki.CertRef) ([]*Requests, error) {
	get, post, nonce := &Requests{Name: "get", Compared: true}, &Requests{Name: "post", Compared: true}, &Requests{Name: "nonce"}
	for _, ref := range refs {
		der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: ref.Serial.Int()}, issuer, &ocsp.RequestOptions{Hash: crypto.SHA1})
		if err != nil {
			return nil, err
		}
		encoded := url.QueryEscape(base64.StdEncoding.EncodeToString(der)) // escapes the characters of base64 that RFC 6960 requires
		get.requests = append(get.requests, []byte("GET /ocsp/"+encoded+" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))
		post.requests = append(post.requests, postRequest(der))
		if der, err = withNonce(der); err != nil {
			return nil, err
		}
		nonce.requests = append(nonce.requests, postRequest(der))
	}
	kinds := []*Requests{get, post, nonce}
	script := filepath.Join(dir, "ocsp.lua")
	if err := os.WriteFile(script, wrkScript, 0o600); err != nil {
		return nil, err
	}
	for _, w := range kinds {
		w.Script, w.File = script, filepath.Join(dir, w.Name+".requests")
		var all bytes.Buffer
		for _, q := range w.requests {
			fmt.Fprintf(&all, "%d\n%s", len(q), q)
		}
		if err := os.WriteFile(w.File, all.Bytes(), 0o600); err != nil {
			return nil, err
		}
	}
	return kinds, nil
}

func postRequest(der []byte) []byte {
	head := "POST /ocsp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/ocsp-request\r\nContent-Length: " + strconv.Itoa(len(der)) + "\r\n\r\n"
	return append([]byte(head), der...)
}

// withNonce adds a random nonce to a request that has no extensions (RFC 9654 section 2.1).
func withNonce(der []byte) ([]byte, error) {
	outer := cryptobyte.String(der)
	var request, tbs cryptobyte.String
	if !outer.ReadASN1(&request, asn1.SEQUENCE) || !request.ReadASN1(&tbs, asn1.SEQUENCE) {
		return nil, errors.New("add a nonce: this is not an OCSP request")
	}
	random := make([]byte, nonceSize)
	_, _ = rand.Read(random) // never fails
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			b.AddASN1(asn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier([]int{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}) // id-pkix-ocsp-nonce
						b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(random) })
					})
				})
			})
		})
	})
	return b.Bytes()
}

// TryOut sends each request once, over a few connections, and verifies that each response is signed. It sets the mean
// sizes of the responses. It then drops the requests from memory, because they are in the file.
func (w *Requests) TryOut(ctx context.Context, address string) error {
	const connections = 16
	var size, bodySize atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for n := range connections {
		group.Go(func() error {
			var dialer net.Dialer
			conn, err := dialer.DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			defer conn.Close()
			counted := &countingReader{Reader: conn}
			responses := bufio.NewReader(counted)
			for i := n; i < len(w.requests); i += connections {
				received, err := w.exchange(conn, responses, w.requests[i])
				if err != nil {
					return fmt.Errorf("request by %s: %w", w.Name, err)
				}
				bodySize.Add(int64(received))
			}
			size.Add(counted.n) // there are no bytes after the last response
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	w.Size, w.BodySize = float64(size.Load())/float64(len(w.requests)), float64(bodySize.Load())/float64(len(w.requests))
	w.requests = nil
	return nil
}

// exchange sends a request, reads the response, and returns the size of its body.
func (w *Requests) exchange(conn net.Conn, responses *bufio.Reader, request []byte) (int, error) {
	if err := conn.SetDeadline(time.Now().Add(client.CallTimeout)); err != nil {
		return 0, err
	}
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(responses, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	der, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, errors.Join(fmt.Errorf("the server responded with HTTP %s", resp.Status), err)
	}
	if _, err := ocsp.ParseResponse(der, nil); err != nil { // it verifies the delegate's signature
		return 0, err
	}
	return len(der), nil
}

// countingReader counts the bytes that are read through it.
type countingReader struct {
	io.Reader
	n int64
}

// Read implements io.Reader.
func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.n += int64(n)
	return n, err
}
