package validation

import (
	"net/netip"
	"slices"
)

// forbidden are the networks that DefaultAllows excludes beside those that package netip knows.
var forbidden = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),          // this network (RFC 1122 §3.2.1.3)
	netip.MustParsePrefix("240.0.0.0/4"),        // reserved, and the broadcast address (RFC 1112 §4)
	netip.MustParsePrefix("192.0.0.192/32"),     // metadata of Oracle Cloud
	netip.MustParsePrefix("100.100.100.200/32"), // metadata of Alibaba Cloud
	netip.MustParsePrefix("168.63.129.16/32"),   // metadata of Azure
	netip.MustParsePrefix("fd00:ec2::/32"),      // metadata of AWS
	netip.MustParsePrefix("fd20:ce::254/128"),   // metadata of Google Cloud
	netip.MustParsePrefix("fec0::/10"),          // site-local, deprecated (RFC 3879)
	netip.MustParsePrefix("2001::/32"),          // Teredo, which contains IPv4 addresses (RFC 4380)
	netip.MustParsePrefix("2002::/16"),          // 6to4, which contains IPv4 addresses (RFC 3056)
	netip.MustParsePrefix("64:ff9b:1::/48"),     // IPv4 addresses behind a local translator (RFC 8215)
	netip.MustParsePrefix("::/96"),              // IPv4-compatible, deprecated (RFC 4291 §2.5.5.1)
}

// translated is the network of IPv4 addresses behind a translator (RFC 6052 §2.1).
var translated = netip.MustParsePrefix("64:ff9b::/96")

// DefaultAllows reports whether a validation may connect to an address if no networks are configured. It allows every
// unicast address, those of private networks included. It does not allow loopback, link-local and unspecified
// addresses, and the addresses at which clouds serve the credentials of a machine.
func DefaultAllows(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if translated.Contains(a) {
		b := a.As16()
		return DefaultAllows(netip.AddrFrom4([4]byte(b[12:])))
	}
	return a.IsGlobalUnicast() && !slices.ContainsFunc(forbidden, func(p netip.Prefix) bool { return p.Contains(a) })
}

// allows returns a function that reports whether an address is in one of the networks. Without networks it returns
// DefaultAllows.
func allows(networks []netip.Prefix) func(netip.Addr) bool {
	if len(networks) == 0 {
		return DefaultAllows
	}
	return func(a netip.Addr) bool {
		a = a.Unmap().WithZone("")
		return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
	}
}
