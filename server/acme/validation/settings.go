package validation

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

const dnsPort = 53

// maxResolvers is the maximum number of resolvers. More would not be asked within Timeout.
const maxResolvers = 4

// ParseResolvers parses IP addresses with or without a port, such as 192.0.2.53 and [2001:db8::53]:5353. The default
// port is 53.
func ParseResolvers(texts []string) ([]netip.AddrPort, error) {
	if len(texts) > maxResolvers {
		return nil, fmt.Errorf("there are %d resolvers: name %d at most", len(texts), maxResolvers)
	}
	var all []netip.AddrPort
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, netip.AddrPortFrom(a, dnsPort))
			continue
		}
		a, err := netip.ParseAddrPort(text)
		if err != nil || a.Port() == 0 {
			return nil, fmt.Errorf("%.100q is not an IP address: write it like 192.0.2.53 or [2001:db8::53]:5353", text)
		}
		all = append(all, a)
	}
	return all, nil
}

// ParseNetworks parses networks, such as 10.0.0.0/8, and single addresses.
func ParseNetworks(texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if a, errAddr := netip.ParseAddr(text); errAddr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%.100q is not a network: write it like 10.0.0.0/8 or 2001:db8::/32", text)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s has bits after the prefix: write %s", text, p.Masked())
		}
		all = append(all, p)
	}
	return all, nil
}

// SystemResolvers reads the resolvers in a file in the format of /etc/resolv.conf. It returns the first ones if there
// are many.
func SystemResolvers(file io.Reader) ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	lines := bufio.NewScanner(io.LimitReader(file, 64<<10))
	for lines.Scan() && len(all) < maxResolvers {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			all = append(all, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return all, lines.Err()
}
