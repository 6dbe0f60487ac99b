// Asks with Go's own resolver: `lookup host NAME` and `lookup addr ADDRESS`; the answers, one a line.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sort"
)

func main() {
	resolver := &net.Resolver{PreferGo: true}
	look := resolver.LookupHost
	if os.Args[1] == "addr" {
		look = resolver.LookupAddr
	}
	found, err := look(context.Background(), os.Args[2])
	if err != nil {
		if missing, ok := err.(*net.DNSError); ok && missing.IsNotFound {
			fmt.Println("not found")
			return
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	sort.Strings(found)
	for _, one := range found {
		fmt.Println(one)
	}
}
