-- The lock between publishes and changes of a tenant's subscriptions: an advisory lock of the tenant instead of its row's
-- FOR SHARE, which several nodes at once turn into a MultiXact a statement.
--
-- A publish holds it shared, a change that moves the epoch holds it exclusively, both until their transaction has ended. So no
-- epoch moves between the check of a publish and its commit; and a publish that gets the lock reads the epoch with a snapshot
-- that is younger than the last change's commit.

CREATE FUNCTION hookline_epoch_lock(tenant_uid uuid) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN uuid_hash_extended(tenant_uid, 5212);

CREATE FUNCTION hookline_lock_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hookline_epoch_lock(NEW.tenant_uid));
    RETURN NEW;
END $$;

-- Whatever statement moves an epoch takes the lock.
CREATE TRIGGER tenants_lock_epoch BEFORE UPDATE ON tenants FOR EACH ROW
    WHEN (OLD.epoch IS DISTINCT FROM NEW.epoch OR OLD.deleted_at IS DISTINCT FROM NEW.deleted_at)
    EXECUTE FUNCTION hookline_lock_epoch();

-- For each tenant, whether it may be written for: its lock is free, and its epoch is the one given. It waits for no lock, and
-- nor does the rest of the transaction for longer than `lock_timeout_ms`.
-- Each statement of a VOLATILE function has a snapshot of its own, but only under READ COMMITTED; plpgsql keeps the plans.
CREATE FUNCTION hookline_check_epochs(tenant_uids uuid[], epochs bigint[], lock_timeout_ms integer) RETURNS boolean[]
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    locked boolean[];
    passed boolean[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'publishing needs transactions that are READ COMMITTED, this one is %',
            upper(current_setting('transaction_isolation'))
            USING HINT = 'Remove default_transaction_isolation from the settings of the server, the database and the role.';
    END IF;
    PERFORM set_config('lock_timeout', lock_timeout_ms::text, true);
    SELECT array_agg(pg_try_advisory_xact_lock_shared(hookline_epoch_lock(w.tenant_uid)) ORDER BY w.n)
    INTO locked FROM unnest(tenant_uids) WITH ORDINALITY AS w (tenant_uid, n);
    SELECT array_agg(w.locked AND t.epoch IS NOT DISTINCT FROM w.epoch AND t.deleted_at IS NULL ORDER BY w.n)
    INTO passed
    FROM unnest(tenant_uids, epochs, locked) WITH ORDINALITY AS w (tenant_uid, epoch, locked, n)
    LEFT JOIN tenants t ON t.tenant_uid = w.tenant_uid;
    RETURN coalesce(passed, '{}');
END $$;
