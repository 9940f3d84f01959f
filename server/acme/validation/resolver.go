package validation

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxAliases  = 8               // maximum number of CNAMEs between a name and its records
	maxRecords  = 100             // maximum number of records that are used of one response
	udpSize     = 1232            // bytes of a UDP response that a resolver may send (RFC 9715 §3.1)
	tryTimeout  = 2 * time.Second // of one exchange with one resolver
	tryResolver = 2               // exchanges with each resolver
)

// resolver asks recursive resolvers for records. It follows CNAMEs. It neither caches nor adds a search domain. It is
// safe for concurrent use.
type resolver struct{ servers []netip.AddrPort }

// errNoRecord means that a name does not exist, or has no record of the type.
var errNoRecord = errors.New("there is no such record")

// addresses returns the IPv6 and then the IPv4 addresses of a name. The names localhost and below it have the loopback
// addresses, and no resolver is asked (RFC 6761 §6.3).
func (r *resolver) addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	if strings.HasSuffix("."+name, ".localhost") {
		return []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	var found []netip.Addr
	var failure error
	for _, t := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeA} {
		records, err := r.lookup(ctx, name, t)
		if err != nil {
			if !errors.Is(err, errNoRecord) {
				failure = err
			}
			continue
		}
		for _, record := range records {
			switch body := record.(type) {
			case *dnsmessage.AAAAResource:
				found = append(found, netip.AddrFrom16(body.AAAA).Unmap())
			case *dnsmessage.AResource:
				found = append(found, netip.AddrFrom4(body.A))
			}
		}
	}
	switch {
	case len(found) > 0:
		return found, nil
	case failure != nil:
		return nil, failure
	default:
		return nil, errNoRecord
	}
}

// texts returns the TXT records of a name. The strings of one record are joined.
func (r *resolver) texts(ctx context.Context, name string) ([]string, error) {
	records, err := r.lookup(ctx, name, dnsmessage.TypeTXT)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, record := range records {
		if body, ok := record.(*dnsmessage.TXTResource); ok {
			found = append(found, strings.Join(body.TXT, ""))
		}
	}
	return found, nil
}

// lookup returns the records of a type at a name, or at the name to which its CNAMEs lead.
func (r *resolver) lookup(ctx context.Context, name string, t dnsmessage.Type) ([]dnsmessage.ResourceBody, error) {
	at, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, errors.New("the name is too long")
	}
	for aliases := 0; aliases <= maxAliases; {
		message, err := r.query(ctx, dnsmessage.Question{Name: at, Type: t, Class: dnsmessage.ClassINET})
		if err != nil {
			return nil, err
		}
		records, end, steps := follow(message, at, t)
		if len(records) > 0 && aliases+steps <= maxAliases {
			return records, nil
		}
		if steps == 0 {
			return nil, errNoRecord
		}
		aliases += steps
		at = end
	}
	return nil, fmt.Errorf("there are more than %d CNAMEs", maxAliases)
}

// follow returns the records of a type in a response, at the name to which the CNAMEs in the response lead. end is that
// name, and steps the number of CNAMEs.
func follow(answers []dnsmessage.Resource, at dnsmessage.Name, t dnsmessage.Type) (records []dnsmessage.ResourceBody, end dnsmessage.Name, steps int) {
	for ; steps <= maxAliases; steps++ {
		var alias *dnsmessage.CNAMEResource
		for _, a := range answers {
			if !sameName(a.Header.Name, at) || a.Header.Class != dnsmessage.ClassINET {
				continue
			}
			switch body := a.Body.(type) {
			case *dnsmessage.CNAMEResource:
				alias = body
			default:
				if a.Header.Type == t && len(records) < maxRecords {
					records = append(records, body)
				}
			}
		}
		if len(records) > 0 || alias == nil {
			return records, at, steps
		}
		at = alias.CNAME
	}
	return nil, at, steps
}

func sameName(a, b dnsmessage.Name) bool { return strings.EqualFold(a.String(), b.String()) }

// query asks the resolvers in their order until one responds.
func (r *resolver) query(ctx context.Context, q dnsmessage.Question) ([]dnsmessage.Resource, error) {
	failure := errors.New("no resolver is configured")
	for range tryResolver {
		for _, server := range r.servers {
			if ctx.Err() != nil {
				return nil, failure
			}
			answers, err := exchange(ctx, server, q)
			if err == nil || errors.Is(err, errNoRecord) {
				return answers, err
			}
			failure = err
		}
	}
	return nil, failure
}

// exchange sends a question over UDP, and again over TCP if the response is truncated.
func exchange(ctx context.Context, server netip.AddrPort, q dnsmessage.Question) ([]dnsmessage.Resource, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	for _, network := range []string{"udp", "tcp"} {
		var id [2]byte
		_, _ = rand.Read(id[:]) // never fails
		query, err := pack(binary.BigEndian.Uint16(id[:]), q)
		if err != nil {
			return nil, errors.New("the name cannot be put in a question")
		}
		answers, isTruncated, err := send(ctx, network, server, query, func(response []byte) ([]dnsmessage.Resource, bool, error) {
			return parseResponse(response, binary.BigEndian.Uint16(id[:]), q)
		})
		if err != nil || !isTruncated {
			return answers, err
		}
	}
	return nil, errors.New("the response of the resolver is truncated over TCP")
}

// pack encodes a question with EDNS(0) (RFC 6891).
func pack(id uint16, q dnsmessage.Question) ([]byte, error) {
	var edns dnsmessage.ResourceHeader
	if err := edns.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:      dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions:   []dnsmessage.Question{q},
		Additionals: []dnsmessage.Resource{{Header: edns, Body: &dnsmessage.OPTResource{}}},
	}
	return m.Pack()
}

var (
	errResolver = errors.New("the resolver does not respond")
	errOther    = errors.New("the response is to another question")
)

// send sends a query, and parses the response. Over UDP it ignores messages that are no response to the query.
func send(ctx context.Context, network string, server netip.AddrPort, query []byte,
	parse func([]byte) ([]dnsmessage.Resource, bool, error),
) ([]dnsmessage.Resource, bool, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, false, errResolver
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...) //nolint:gosec // a question is short
	}
	if _, err := conn.Write(query); err != nil {
		return nil, false, errResolver
	}
	if network == "tcp" {
		response, err := readTCP(conn)
		if err != nil {
			return nil, false, errResolver
		}
		return parse(response)
	}
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, false, errResolver
		}
		if answers, isTruncated, err := parse(buffer[:n]); !errors.Is(err, errOther) {
			return answers, isTruncated, err
		}
	}
}

// readTCP reads one message with its length (RFC 1035 §4.2.2).
func readTCP(conn io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	response := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(conn, response)
	return response, err
}

// parseResponse returns the answers in a response to the question, and whether the response is truncated. It returns
// errOther for a response to another question, and for a message that it cannot parse so far.
func parseResponse(response []byte, id uint16, q dnsmessage.Question) (answers []dnsmessage.Resource, isTruncated bool, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(response)
	if err != nil || !h.Response || h.ID != id || h.OpCode != 0 {
		return nil, false, errOther
	}
	asked, err := p.Question()
	if err != nil || !sameName(asked.Name, q.Name) || asked.Type != q.Type || asked.Class != q.Class {
		return nil, false, errOther
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return nil, false, errOther
	}
	switch {
	case h.Truncated:
		return nil, true, nil
	case h.RCode == dnsmessage.RCodeNameError:
		return nil, false, errNoRecord
	case h.RCode != dnsmessage.RCodeSuccess:
		return nil, false, errors.New("the resolver responds with an error")
	}
	answers, err = parseAnswers(&p, q.Type)
	return answers, false, err
}

// parseAnswers returns the CNAMEs and the records of a type in the answers. It skips others.
func parseAnswers(p *dnsmessage.Parser, t dnsmessage.Type) ([]dnsmessage.Resource, error) {
	errMalformed := errors.New("the response of the resolver is malformed")
	var answers []dnsmessage.Resource
	for len(answers) <= maxRecords+maxAliases {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return answers, nil
		}
		if err != nil {
			return nil, errMalformed
		}
		if h.Type != t && h.Type != dnsmessage.TypeCNAME {
			if err := p.SkipAnswer(); err != nil {
				return nil, errMalformed
			}
			continue
		}
		body, err := resource(p, h.Type)
		if err != nil {
			return nil, errMalformed
		}
		answers = append(answers, dnsmessage.Resource{Header: h, Body: body})
	}
	return answers, nil
}

func resource(p *dnsmessage.Parser, t dnsmessage.Type) (dnsmessage.ResourceBody, error) {
	switch t {
	case dnsmessage.TypeCNAME:
		r, err := p.CNAMEResource()
		return &r, err
	case dnsmessage.TypeA:
		r, err := p.AResource()
		return &r, err
	case dnsmessage.TypeAAAA:
		r, err := p.AAAAResource()
		return &r, err
	case dnsmessage.TypeTXT:
		r, err := p.TXTResource()
		return &r, err
	default:
		return nil, fmt.Errorf("records of the type %s are not used", t)
	}
}
