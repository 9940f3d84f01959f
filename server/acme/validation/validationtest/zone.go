// Package validationtest helps tests to validate ACME challenges. Only test files may import it.
package validationtest

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Zone is a DNS server for tests, over UDP and TCP on one port of the loopback address. Its methods are safe for
// concurrent use.
type Zone struct {
	Addr netip.AddrPort

	mu      sync.Mutex
	code    dnsmessage.RCode
	change  func(m *dnsmessage.Message)
	records map[string][]dnsmessage.Resource
	queries map[string]int // by network
}

// NewZone returns a Zone that responds until the end of the test.
func NewZone(t testing.TB) *Zone {
	t.Helper()
	for range 20 { // the same port may be taken for the other protocol
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		addr := udp.LocalAddr().(*net.UDPAddr).AddrPort()
		tcp, err := net.Listen("tcp", addr.String())
		if err != nil {
			_ = udp.Close()
			continue
		}
		z := &Zone{Addr: addr, records: map[string][]dnsmessage.Resource{}, queries: map[string]int{}}
		t.Cleanup(func() { _ = udp.Close(); _ = tcp.Close() })
		go z.serveUDP(udp)
		go z.serveTCP(tcp)
		return z
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil
}

// Add adds a record at a name.
func (z *Zone) Add(t testing.TB, name string, body dnsmessage.ResourceBody) {
	t.Helper()
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		t.Fatal(err)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	h := dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 60}
	z.records[strings.ToLower(n.String())] = append(z.records[strings.ToLower(n.String())], dnsmessage.Resource{Header: h, Body: body})
}

// Address adds an A or AAAA record.
func (z *Zone) Address(t testing.TB, name, addr string) {
	t.Helper()
	if a := netip.MustParseAddr(addr); a.Is4() {
		z.Add(t, name, &dnsmessage.AResource{A: a.As4()})
	} else {
		z.Add(t, name, &dnsmessage.AAAAResource{AAAA: a.As16()})
	}
}

// Alias adds a CNAME record.
func (z *Zone) Alias(t testing.TB, name, to string) {
	t.Helper()
	z.Add(t, name, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to + ".")})
}

// Count returns the number of queries over "udp" or "tcp".
func (z *Zone) Count(network string) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.queries[network]
}

// Fail sets the RCODE of all responses.
func (z *Zone) Fail(code dnsmessage.RCode) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.code = code
}

// Change sets a function that alters each response over UDP before it is sent.
func (z *Zone) Change(change func(m *dnsmessage.Message)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.change = change
}

// respond returns the response to a query. Over UDP, it truncates responses of over 512 bytes.
func (z *Zone) respond(query []byte, network string) []byte {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.queries[network]++
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, RCode: z.code, RecursionDesired: true, RecursionAvailable: true}
	m.Additionals = nil
	records, exists := z.records[strings.ToLower(q.Name.String())]
	if !exists && z.code == dnsmessage.RCodeSuccess {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, r := range records {
		_, isAlias := r.Body.(*dnsmessage.CNAMEResource)
		if isAlias || typeOf(r.Body) == q.Type {
			r.Header.Type = typeOf(r.Body)
			m.Answers = append(m.Answers, r)
		}
	}
	if z.change != nil && network == "udp" {
		z.change(&m)
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	if network == "udp" && len(packed) > 512 {
		m.Answers, m.Truncated = nil, true
		packed, _ = m.Pack()
	}
	return packed
}

func typeOf(body dnsmessage.ResourceBody) dnsmessage.Type {
	switch body.(type) {
	case *dnsmessage.AResource:
		return dnsmessage.TypeA
	case *dnsmessage.AAAAResource:
		return dnsmessage.TypeAAAA
	case *dnsmessage.CNAMEResource:
		return dnsmessage.TypeCNAME
	default:
		return dnsmessage.TypeTXT
	}
}

func (z *Zone) serveUDP(conn *net.UDPConn) {
	buffer := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		if response := z.respond(buffer[:n], "udp"); response != nil {
			_, _ = conn.WriteToUDPAddrPort(response, from)
		}
	}
}

func (z *Zone) serveTCP(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			var length [2]byte
			if _, err := io.ReadFull(conn, length[:]); err != nil {
				return
			}
			query := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(conn, query); err != nil {
				return
			}
			response := z.respond(query, "tcp")
			_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(response))), response...))
		}()
	}
}
