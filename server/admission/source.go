package admission

import (
	"net"
	"net/netip"

	"github.com/brevet-pki/brevet/fair"
	"github.com/brevet-pki/brevet/pki"
)

// Source is what a call counts against: an identity with its key, or the address of a caller that is not authenticated.
type Source struct {
	id      pki.SPIFFEID
	key     pki.KeyHash
	address netip.Addr
}

// Identity returns the source of an authenticated caller. The key is part of it because an identity can have several
// valid certificates: if one key is stolen, the thief uses up the share of that key only.
func Identity(id pki.SPIFFEID, key pki.KeyHash) Source { return Source{id: id, key: key} }

// OfAllKeys returns the source that stands for all keys of the identity, or any other source unchanged. Streams that
// stay open count for that source, because their slots are few. If they counted for the key, an identity would get
// another share of the slots with each renewal. As a disadvantage, the thief of one key can use up the identity's
// share.
func (s Source) OfAllKeys() Source {
	s.key = pki.KeyHash{}
	return s
}

// Address returns the source of a caller that is not authenticated: an IPv4 address, or the /64 network of an IPv6
// address. All callers without an IP address are one source.
func Address(a net.Addr) Source {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return Source{}
	}
	return Source{address: fair.Host(tcp.AddrPort().Addr())}
}

// IsIdentity reports whether the source is an identity, and not an address.
func (s Source) IsIdentity() bool { return !s.id.IsZero() }

// String returns the identity or the address for messages.
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
