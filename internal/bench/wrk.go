package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
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

const (
	wrkConnections = 64
	wrkTimeout     = 5 * time.Second // for one response
	// wrkMargin is how much the mean size of a response under load may differ from that without load, as a share. An
	// OCSP error response has five bytes, so even few of them are noticed. They are fast, and would raise the measured
	// rate.
	wrkMargin = 0.01
	wrkRound  = time.Second // the minimum duration of a round, which must be whole seconds for wrk
	// nonceSize is the size of a client's nonce in bytes (RFC 9654).
	nonceSize = 32
)

//go:embed ocsp.lua
var wrkScript []byte

// findWrk returns the path of wrk, the program that sends the load.
func findWrk() (string, error) {
	path, err := exec.LookPath("wrk")
	if err != nil {
		return "", errors.New("wrk, which sends the load, is not on the PATH: install it (Debian: apt-get install wrk), or run deploy/setup.sh --test")
	}
	return path, nil
}

// requestKind is a kind of OCSP request, with a file of requests that wrk sends unchanged.
type requestKind struct {
	name     string
	compared bool // whether the bare handler is measured, too
	requests [][]byte
	script   string
	file     string
	size     float64 // bytes of a response with its header, on average
	bodySize float64 // bytes of a response without its header, on average
}

// writeRequests writes requests for the statuses of certificates of one CA: by GET (RFC 6960 appendix A.1), by POST,
// and by POST with a nonce.
func writeRequests(dir string, issuer *x509.Certificate, refs []pki.CertRef) ([]*requestKind, error) {
	get, post, nonce := &requestKind{name: "get", compared: true}, &requestKind{name: "post", compared: true}, &requestKind{name: "nonce"}
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
	kinds := []*requestKind{get, post, nonce}
	script := filepath.Join(dir, "ocsp.lua")
	if err := os.WriteFile(script, wrkScript, 0o600); err != nil {
		return nil, err
	}
	for _, w := range kinds {
		w.script, w.file = script, filepath.Join(dir, w.name+".requests")
		var all bytes.Buffer
		for _, q := range w.requests {
			fmt.Fprintf(&all, "%d\n%s", len(q), q)
		}
		if err := os.WriteFile(w.file, all.Bytes(), 0o600); err != nil {
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

// tryOut sends each request once, over a few connections, and verifies that each response is signed. It sets the mean
// sizes of the responses. It then drops the requests from memory, because they are in the file.
func (w *requestKind) tryOut(ctx context.Context, address string) error {
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
					return fmt.Errorf("request by %s: %w", w.name, err)
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
	w.size, w.bodySize = float64(size.Load())/float64(len(w.requests)), float64(bodySize.Load())/float64(len(w.requests))
	w.requests = nil
	return nil
}

// exchange sends a request, reads the response, and returns the size of its body.
func (w *requestKind) exchange(conn net.Conn, responses *bufio.Reader, request []byte) (int, error) {
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

// wrkResult is the result of one run of wrk.
type wrkResult struct {
	rate     float64 // responses per second
	p50, p99 float64 // milliseconds
	// Processor time of a response in microseconds. If other programs use the machine, it is a better measure than the
	// rate.
	serverCPU, loadCPU float64
}

// runWrk sends requests to a process for d. If the mean size of a response is not wantSize, some responses are errors,
// and runWrk returns an error. If wantSize is 0, it accepts any size.
func (r *ocspRig) runWrk(ctx context.Context, w *requestKind, address string, process *os.Process, wantSize float64, d time.Duration) (wrkResult, error) {
	cmd := exec.CommandContext(ctx, r.wrk, "--threads", "1", "--connections", strconv.Itoa(wrkConnections),
		"--duration", strconv.Itoa(int(d/time.Second))+"s", "--timeout", strconv.Itoa(int(wrkTimeout/time.Second))+"s",
		"--script", w.script, "http://"+address, w.file)
	endWithParent(cmd)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	before, err := cpuOf(process)
	if err != nil {
		return wrkResult{}, err
	}
	if err := cmd.Run(); err != nil {
		return wrkResult{}, fmt.Errorf("wrk: %w: %s", err, output.Bytes())
	}
	after, err := cpuOf(process)
	if err != nil {
		return wrkResult{}, err
	}
	var result struct {
		Responses float64 `json:"answers"`
		Octets    float64 `json:"octets"`
		Took      float64 `json:"took_us"`
		Failed    int     `json:"failed"`
		P50       float64 `json:"p50_us"`
		P99       float64 `json:"p99_us"`
	}
	lines := bytes.Split(bytes.TrimSpace(output.Bytes()), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &result); err != nil {
		return wrkResult{}, fmt.Errorf("read the result of wrk: %w: %s", err, output.Bytes())
	}
	if result.Failed > 0 {
		return wrkResult{}, fmt.Errorf("%d of %.0f requests by %s failed: %s", result.Failed, result.Responses, w.name, output.Bytes())
	}
	if got := result.Octets / result.Responses; wantSize > 0 && !(math.Abs(got-wantSize) < wrkMargin*wantSize) {
		return wrkResult{}, fmt.Errorf("responses by %s have %.0f bytes under load and %.0f without: some are OCSP errors", w.name, got, wantSize)
	}
	return wrkResult{
		rate: result.Responses / result.Took * 1e6, p50: result.P50 / 1000, p99: result.P99 / 1000,
		serverCPU: micros(after-before) / result.Responses, loadCPU: micros(cpuOfEnded(cmd)) / result.Responses,
	}, nil
}
