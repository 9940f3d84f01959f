package acmeload

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Account is an account that a server has on record.
type Account struct {
	Key   *ecdsa.PrivateKey
	ID    string // the last segment of its URL
	Order string // the last segment of the URL of its pending order; empty if it has none
}

// OpenAll creates clients, each with an account. Each has an address of its own, from 127.0.1.1 on, so that the servers
// count it apart.
func OpenAll(ctx context.Context, n int, config *tls.Config, directory string, port int, timeout time.Duration) ([]*Client, error) {
	var clients []*Client
	for i := range n {
		c, err := Open(ctx, &http.Client{Timeout: timeout, Transport: &http.Transport{
			TLSClientConfig: config, DialContext: dialerFrom(i).DialContext, MaxConnsPerHost: 1, IdleConnTimeout: time.Hour,
		}}, directory, addressOf(i), port)
		if err != nil {
			return clients, fmt.Errorf("ACME client %d: %w", i+1, err)
		}
		clients = append(clients, c)
	}
	return clients, nil
}

// addressOf returns the address of the client with an index, which is below 250.
func addressOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + i)}) } //nolint:gosec // see above

func dialerFrom(i int) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: addressOf(i).AsSlice()}}
}

// CreateOrder creates an order that stays pending, and returns the client's account with it.
func (a *Client) CreateOrder(ctx context.Context) (Account, error) {
	var err error
	a.pending, err = a.newOrder(ctx, &object{})
	return Account{Key: a.key, ID: lastSegment(a.account), Order: lastSegment(a.pending)}, err
}

// Read reads the pending order of an account, or the account if it has no order. It signs with the account's key. The
// client must have called CreateOrder, because the URLs of the server's orders differ only in the last segment.
func (a *Client) Read(ctx context.Context, as Account) error {
	c := *a
	c.key, c.account = as.Key, siblingOf(a.account, as.ID)
	url, want := c.account, "valid"
	if as.Order != "" {
		url, want = siblingOf(a.pending, as.Order), "pending"
	}
	var o object
	_, err := c.post(ctx, url, nil, &o)
	a.nonce = c.nonce
	if err == nil && o.Status != want {
		err = fmt.Errorf("%s is %s", url, o.Status)
	}
	return err
}

// ReadAll sends a number of requests from all clients at once. Each reads another account or its order, or the client's own
// if accounts is empty.
func ReadAll(ctx context.Context, clients []*Client, accounts []Account, requests int) error {
	group, ctx := errgroup.WithContext(ctx)
	for first, c := range clients {
		group.Go(func() error {
			as, err := c.CreateOrder(ctx)
			for i := first; i < requests && err == nil; i += len(clients) {
				if len(accounts) > 0 {
					as = accounts[i%len(accounts)]
				}
				err = c.Read(ctx, as)
			}
			return err
		})
	}
	return group.Wait()
}

func lastSegment(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

// siblingOf returns url with another last segment.
func siblingOf(url, segment string) string {
	return strings.TrimSuffix(url, lastSegment(url)) + segment
}
