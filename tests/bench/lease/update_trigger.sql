\set k random(1, 10000)
UPDATE by_hand SET n = n + 1, epoch = 1 WHERE id = :k;
