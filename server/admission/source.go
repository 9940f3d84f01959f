package admission

import (
	"net"
	"net/netip"

	"github.com/brevet-pki/brevet/fair"
	"github.com/brevet-pki/brevet/pki"
)

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
	return Source{address: fair.Host(tcp.AddrPort().Addr())}
}

// IsIdentity reports whether the source is an identity, and not an address.
func (s Source) IsIdentity() bool { return !s.id.IsZero() }

// String says who it is, to a person.
func (s Source) String() string {
	switch {
	case !s.id.IsZero():
		return s.id.String()
	case s.address.Is6():
		return netip.PrefixFrom(s.address, fair.NetworkBits).String()
	default:
		return s.address.String()
	}
}
