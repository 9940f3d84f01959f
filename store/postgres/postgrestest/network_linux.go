package postgrestest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Network is a network namespace in which PostgreSQL runs. Cables lead to it from the namespace of this process. It needs
// root, and iproute2.
type Network struct {
	own, other *os.File // the namespaces of this process and of PostgreSQL
	cables     int
}

// NewNetwork returns a network without cables. It exists until Close and the end of PostgreSQL.
func NewNetwork() (_ *Network, err error) {
	n := &Network{}
	if n.own, err = currentNamespace(); err != nil {
		return nil, err
	}
	err = n.visit(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		n.other, err = currentNamespace()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return n, nil
}

// currentNamespace returns the network namespace of this thread (network_namespaces(7)).
func currentNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// visit calls do in another namespace, which enter enters. Processes that do starts stay there.
func (n *Network) visit(enter, do func() error) error {
	runtime.LockOSThread()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err := do()
	if back := unix.Setns(int(n.own.Fd()), unix.CLONE_NEWNET); back != nil {
		return back // the thread stays locked, so that no other goroutine gets it
	}
	runtime.UnlockOSThread()
	return err
}

func (n *Network) inside(do func() error) error {
	return n.visit(func() error { return unix.Setns(int(n.other.Fd()), unix.CLONE_NEWNET) }, do)
}

// Close ends the network, once no process is in it.
func (n *Network) Close() error {
	_ = n.own.Close()
	return n.other.Close()
}

// RunIn starts a server that was stopped, as Run does, in a network. It accepts TCP connections of any address.
func (c *Cluster) RunIn(n *Network, settings ...string) error {
	if err := c.WriteData("pg_hba.conf", []byte("local all all trust\nhost all all all trust\n")); err != nil {
		return err
	}
	return n.inside(func() error { return c.Run(append(settings, "listen_addresses=*")...) })
}

// Cable connects this process with a network.
type Cable struct {
	// Host is PostgreSQL's address at the other end.
	Host string

	network *Network
	far     string // name of the interface in the network
}

// Cable returns a new cable.
func (n *Network) Cable() (*Cable, error) {
	ours, theirs, err := unusedAddresses()
	if err != nil {
		return nil, err
	}
	n.cables++
	near := fmt.Sprintf("bvt%08x", rand.Uint32()) //nolint:gosec // unique, not secret
	c := &Cable{Host: theirs.Addr().String(), network: n, far: fmt.Sprintf("cable%d", n.cables)}
	add := exec.CommandContext(context.Background(), "ip", "link", "add", near, "type", "veth", "peer", "name", c.far, "netns", "/proc/self/fd/3")
	add.ExtraFiles = []*os.File{n.other}
	for _, step := range []func() error{
		func() error { return run(add) },
		func() error { return ip("address", "add", ours.String(), "dev", near) },
		func() error { return ip("link", "set", near, "up") },
		func() error {
			return n.inside(func() error { return ip("address", "add", theirs.String(), "dev", c.far) })
		},
		c.Mend,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// unusedAddresses returns two addresses of the range for measurements between networks (RFC 2544 section C.2.2) that this
// process's network does not have.
func unusedAddresses() (ours, theirs netip.Prefix, err error) {
	used, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, netip.Prefix{}, err
	}
	taken := map[string]bool{}
	for _, a := range used {
		taken[a.String()] = true
	}
	for {
		n := rand.IntN(1 << 15) //nolint:gosec // unique, not secret
		address := func(host int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + n>>14), byte(n >> 6), byte(n<<2 | host)}), 30) //nolint:gosec // cut off on purpose
		}
		if ours = address(1); !taken[ours.String()] {
			return ours, address(2), nil
		}
	}
}

// Cut drops all packets between the two ends. Both ends keep their connections open.
func (c *Cable) Cut() error { return c.set("down") }

// Mend ends a Cut, and returns when packets pass again: the kernel lets them after up to a second.
func (c *Cable) Mend() error {
	if err := c.set("up"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		// Nothing has the port 1. The kernel at the other end refuses the connection if PostgreSQL does not run, too.
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(c.Host, "1"))
		switch {
		case err == nil:
			return conn.Close()
		case errors.Is(err, unix.ECONNREFUSED):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("mend a cable: %w", err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (c *Cable) set(state string) error {
	return c.network.inside(func() error { return ip("link", "set", c.far, state) })
}

func ip(args ...string) error { return run(exec.CommandContext(context.Background(), "ip", args...)) }

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s (deploy/setup.sh --test installs iproute2)", cmd.Args, err, out)
	}
	return nil
}
