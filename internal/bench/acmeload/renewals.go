package acmeload

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"time"
)

const (
	// maxIssued is the number of certificates of a client whose renewal windows are requested.
	maxIssued = 1000
	// pollTimeout limits a request for a renewal window.
	pollTimeout = 10 * time.Second
)

// remember records the URL of a certificate's renewalInfo (RFC 9773 §4.1).
func (a *Client) remember(c *x509.Certificate) {
	if a.directory.RenewalInfo == "" || len(a.issued) == maxIssued {
		return
	}
	serial := c.SerialNumber.Bytes()
	if serial[0]&0x80 != 0 { // as in DER
		serial = append([]byte{0}, serial...)
	}
	a.issued = append(a.issued, a.directory.RenewalInfo+"/"+encode(c.AuthorityKeyId)+"."+encode(serial))
}

// Poller requests the renewal windows of certificates over one kept connection. It shares the processors with the server,
// so it does less than net/http. It is for one goroutine.
type Poller struct {
	conn      *tls.Conn
	responses *bufio.Reader
	requests  [][]byte
	host      string
}

// OpenPollers connects n pollers, which request the windows of certificates that the clients got. Each poller connects
// from the address of a client. It verifies the first response.
func OpenPollers(ctx context.Context, n int, config *tls.Config, clients []*Client) (pollers []*Poller, err error) {
	p := &Poller{}
	for _, c := range clients {
		for _, text := range c.issued {
			u, err := url.Parse(text)
			if err != nil {
				return nil, err
			}
			p.host = u.Host
			p.requests = append(p.requests, []byte("GET "+u.Path+" HTTP/1.1\r\nHost: "+u.Host+"\r\n\r\n"))
		}
	}
	if len(p.requests) == 0 {
		return nil, errors.New("the server has no renewalInfo, or has issued no certificates")
	}
	for i := range n {
		poller := *p
		dialer := &tls.Dialer{NetDialer: dialerFrom(i % len(clients)), Config: config}
		conn, err := dialer.DialContext(ctx, "tcp", p.host)
		if err != nil {
			return pollers, fmt.Errorf("connect for renewal windows: %w", err)
		}
		poller.conn, poller.responses = conn.(*tls.Conn), bufio.NewReader(conn) //nolint:forcetypeassert // as documented
		pollers = append(pollers, &poller)
		if err := poller.tryOut(); err != nil {
			return pollers, err
		}
	}
	return pollers, nil
}

// tryOut requests one window, and verifies that the response has one.
func (p *Poller) tryOut() error {
	if err := p.send(); err != nil {
		return err
	}
	resp, err := http.ReadResponse(p.responses, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var info struct {
		Window struct{ Start, End time.Time } `json:"suggestedWindow"`
	}
	err = json.NewDecoder(resp.Body).Decode(&info)
	if err != nil || resp.StatusCode != http.StatusOK || !info.Window.Start.Before(info.Window.End) {
		return errors.Join(fmt.Errorf("the server responded with HTTP %s and no renewal window", resp.Status), err)
	}
	_, err = io.Copy(io.Discard, resp.Body) // else the next response would begin with the rest
	return err
}

func (p *Poller) send() error {
	if err := p.conn.SetDeadline(time.Now().Add(pollTimeout)); err != nil {
		return err
	}
	_, err := p.conn.Write(p.requests[rand.IntN(len(p.requests))]) //nolint:gosec // not a secret
	return err
}

// Poll requests the window of a random certificate, and returns how long that took.
func (p *Poller) Poll(context.Context) (time.Duration, error) {
	begin := time.Now()
	if err := p.send(); err != nil {
		return 0, err
	}
	err := p.receive()
	return time.Since(begin), err
}

// receive reads a response with a length, and verifies that its status is 200.
func (p *Poller) receive() error {
	status, err := p.responses.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("the server responded with %s", bytes.TrimSpace(status))
	}
	length := 0
	for {
		line, err := p.responses.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = textproto.TrimBytes(line)
		if len(line) == 0 {
			break
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		}
	}
	if length == 0 {
		return errors.New("the server responded without a length")
	}
	_, err = p.responses.Discard(length)
	return err
}

// Close closes the connection.
func (p *Poller) Close() error {
	if err := p.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
