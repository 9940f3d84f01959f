package admission

import (
	"net"
	"net/netip"

	"github.com/brevet-pki/brevet/pki"
)

// networkBits is how much of an IPv6 address tells sources apart. A host has the rest to itself (RFC 4291 §2.5.4).
const networkBits = 64

// Source is whom a call is held against: an identity with the key that it calls with, or where that is not known, an address.
type Source struct {
	id      pki.SPIFFEID
	key     pki.KeyHash
	address netip.Addr
}

// Identity returns the source of a caller who has proved to be id with a key. An identity can have several good certificates,
// and one of their keys can be stolen: the thief spends that key's share, and the identity keeps the shares of its other keys.
func Identity(id pki.SPIFFEID, key pki.KeyHash) Source { return Source{id: id, key: key} }

// Address is the source of any other caller. Those whose address is not one of IP are one source.
func Address(a net.Addr) Source {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return Source{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		ip = netip.PrefixFrom(ip, networkBits).Masked().Addr()
	}
	return Source{address: ip}
}

// String says who it is, to a person.
func (s Source) String() string {
	switch {
	case !s.id.IsZero():
		return s.id.String()
	case s.address.Is6():
		return netip.PrefixFrom(s.address, networkBits).String()
	default:
		return s.address.String()
	}
}
