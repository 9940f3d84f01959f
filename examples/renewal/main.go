// Command renewal shows that connections continue while brevet-agent renews their credential. A TLS server and a client
// share the agent's credential directory and authenticate each other. One connection stays open, and a new one is made
// twice a second. Every exchange on either must succeed, whichever certificates are in use. The program runs until it
// is interrupted, or until it has seen -certificates different certificates, and prints a summary.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
)

func main() {
	dir := flag.String("credential", "", "credential directory of brevet-agent")
	want := flag.Int("certificates", 0, "end after this many different certificates; 0 for never")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *dir, *want)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "renewal:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string, want int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	source, err := enroll.OpenSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	go source.Run(ctx)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	self := func(peer pki.SPIFFEID) error { // both ends share one credential here
		if own := source.Pair().ID(); peer != own {
			return fmt.Errorf("connected to %s instead of %s", peer, own)
		}
		return nil
	}
	go serve(listener, enroll.PeerServerTLS(source.Pair, self))
	client := enroll.PeerClientTLS(source.Pair, self)
	return exchange(ctx, listener.Addr().String(), client, want)
}

// serve accepts connections and echoes each line.
func serve(listener net.Listener, config *tls.Config) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			tlsConn := tls.Server(conn, config)
			lines := bufio.NewScanner(tlsConn)
			for lines.Scan() {
				if _, err := fmt.Fprintln(tlsConn, lines.Text()); err != nil {
					return
				}
			}
		}()
	}
}

// exchange sends pings on an open connection and on new ones, until the context ends or enough certificates were seen.
func exchange(ctx context.Context, address string, config *tls.Config, want int) error {
	dialer := &tls.Dialer{Config: config}
	kept, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = kept.Close() }()
	seen := map[string]bool{}
	rounds := 0
	for ctx.Err() == nil && (want == 0 || len(seen) < want) {
		if err := ping(kept); err != nil {
			return fmt.Errorf("on the open connection: %w", err)
		}
		fresh, err := dialer.DialContext(ctx, "tcp", address)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return fmt.Errorf("new connection: %w", err)
		}
		if c, ok := fresh.(*tls.Conn); ok {
			seen[c.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		}
		if err := errors.Join(ping(fresh), fresh.Close()); err != nil {
			return fmt.Errorf("on a new connection: %w", err)
		}
		rounds++
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
	fmt.Printf("%d exchanges on an open connection and as many on new ones, %d certificates, no failure\n", rounds, len(seen))
	return nil
}

// ping sends a line and checks that it comes back.
func ping(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	sent := time.Now().Format(time.RFC3339Nano)
	if _, err := fmt.Fprintln(conn, sent); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if line != sent+"\n" {
		return fmt.Errorf("sent %q, got %q", sent, line)
	}
	return nil
}
